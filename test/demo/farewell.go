package main

import (
	"fmt"
	"strings"
	"time"

	"weft/test/netlab"
)

// showEnd prints what the first host says of the cluster, and what to try next.
func (d *demo) showEnd(took time.Duration) error {
	d.title("weft status on host a")
	out, err := d.machines[0].CLI("status")
	if err != nil {
		return err
	}
	d.line("%s", indent(out))
	d.title(fmt.Sprintf("All of it worked, in %.0f s.", took.Seconds()))
	if !d.keep {
		d.line("Try next:")
		d.line("    make demo KEEP=1     the same, left standing, to look around in")
		d.line("    ./bin/weft --help    the commands that were used here")
		d.line("    README.md            five minutes to two real machines")
	}
	return nil
}

// showKept says how to get in and how to get rid of it.
func (d *demo) showKept() {
	if len(d.machines) == 0 {
		return
	}
	d.title("It is left standing")
	a := d.machines[0]
	t := &table{}
	t.add("a shell on host a", "nsenter --net="+a.Path())
	t.add("weft on host a", fmt.Sprintf("WEFT_SOCKET=%s nsenter --net=%s %s status", a.Socket(), a.Path(), d.weft))
	if len(a.pods) > 0 {
		t.add("a shell in pod "+a.pods[0].Name(), "nsenter --net="+a.pods[0].Path())
	}
	if last := d.machines[len(d.machines)-1]; len(a.pods) > 0 && len(last.pods) > 0 && len(last.pods[0].Addrs) > 0 {
		t.add("a page from another machine", fmt.Sprintf("nsenter --net=%s %s get %s", a.pods[0].Path(), d.probe, webURL(last.pods[0].Addrs[0])))
	}
	t.add("logs", a.Lab().Dir()+"/*/*.err")
	t.add("remove it", "make demo-clean")
	t.print(d.screen)
}

// showFailure prints the last words of each daemon.
func (d *demo) showFailure() {
	const lines = 25
	for _, m := range d.machines {
		if m.Daemon == nil {
			continue
		}
		d.title("last log lines on host " + m.Name())
		d.line("%s", indent(netlab.Tail(strings.TrimSpace(m.Daemon.Stdout()+m.Daemon.Stderr()), lines)))
		if out, err := m.CLI("status"); err == nil {
			d.line("%s", indent(out))
		}
	}
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ")
}
