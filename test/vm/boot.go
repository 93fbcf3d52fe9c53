package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// trialLimit is what a machine with KVM gets to boot and end. Some hosts offer KVM that is slower than emulation.
	trialLimit = 8 * time.Second
	// plainCode hides from an emulated kernel the instructions that are slower to emulate than what they replace.
	plainCode = "clearcpuid=ssse3,avx2,erms,fsrm"
	// ownClock makes an emulated machine's time out of its instructions, 4 ns each, and skips what it would wait. So its time
	// knows nothing of how busy ours is: what takes a second there takes one whenever it is run, and two runs can be compared.
	ownClock = "-icount shift=2,sleep=off -rtc clock=vm"
)

// boot runs the machine and copies the program's output.
func boot(ctx context.Context, k kernel, o options, tmp, initrd string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	status, err := start(ctx, k, o, tmp, initrd, usesKVM(ctx, k, o, tmp), os.Stdout)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return exitTimeout, fmt.Errorf("not within %s", o.limit)
	}
	return status, err
}

// start is one machine's life.
func start(ctx context.Context, k kernel, o options, tmp, initrd string, kvm bool, out io.Writer) (int, error) {
	control, klog := filepath.Join(tmp, "control"), filepath.Join(tmp, "kernel.log")
	for _, f := range []string{control, klog} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			return exitBroken, err
		}
	}
	// One emulated processor: two patch the kernel's code under each other's feet, which ends a machine in twenty, and wait
	// for each other so much that they do not more.
	args, accel, cpu, processors, words := strings.Fields(ownClock), "tcg,tb-size=512", "max", "1", plainCode
	if kvm {
		args, accel, cpu, processors, words = nil, "kvm", "host", "2", ""
	}
	args = append(args, "-M", "q35", "-accel", accel, "-cpu", cpu, "-smp", processors,
		"-m", fmt.Sprint(o.memory), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", k.image(), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on rdinit=/init "+words,
		"-chardev", "file,id=k,path="+klog, "-serial", "chardev:k",
		"-device", "virtio-serial-pci,max_ports=3",
		"-chardev", "file,id=o,path=/dev/stdout", "-device", "virtserialport,chardev=o,name=out",
		"-chardev", "file,id=c,path="+control, "-device", "virtserialport,chardev=c,name=control")
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	var stderr bytes.Buffer
	// A pipe, not our stdout itself: the machine would cut a file off.
	cmd.Stdout, cmd.Stderr = struct{ io.Writer }{out}, &stderr
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if b, rerr := os.ReadFile(klog); rerr == nil && o.log != "" {
		if werr := os.WriteFile(o.log, b, 0o600); werr != nil {
			return exitBroken, werr
		}
	}
	said, rerr := os.ReadFile(control)
	if rerr != nil {
		return exitBroken, rerr
	}
	if status, ok := statusOf(said); ok {
		return status, nil
	}
	b, _ := os.ReadFile(klog)
	return exitBroken, fmt.Errorf("the machine ended without a status: %w\n%s%s", err, stderr.String(), tail(string(b), 20))
}

// usesKVM asks a machine, once per kernel: neither the device node nor its answers tell whether one boots.
func usesKVM(ctx context.Context, k kernel, o options, tmp string) bool {
	verdict := filepath.Join(k.dir, "kvm")
	if b, err := os.ReadFile(verdict); err == nil {
		return strings.TrimSpace(string(b)) == "yes"
	}
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		return false
	} else if err := f.Close(); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, trialLimit)
	defer cancel()
	answer := "no"
	trial := filepath.Join(tmp, "trial")
	err := pack(trial, func(a *archive) error {
		base, err := os.ReadFile(k.base())
		a.write(base)
		a.add("job/run", fileMode|0o755, []byte("true\n"))
		return err
	})
	if err == nil {
		o.log = ""
		if status, err := start(ctx, k, o, tmp, trial, true, io.Discard); err == nil && status == 0 {
			answer = "yes"
		}
	}
	if err := os.WriteFile(verdict, []byte(answer+"\n"), 0o600); err != nil {
		fmt.Fprintf(os.Stderr, "vm: %v\n", err) // it is asked again the next time
	}
	return answer == "yes"
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
