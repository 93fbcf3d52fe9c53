package weftd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"time"

	"weft/router/host"
)

// dockerd that finds forwarding off turns it on and, by iptables, drops whatever is not of its own networks: pods would
// reach nobody. What it leaves to others is the chain DOCKER-USER, which comes first and outlives it. There weft's chain
// lets packets of pods pass, whose judge is weft's own table, but for those to Docker's bridges. It is made with the program
// that dockerd uses, so that both mean the same tables.
const (
	dockerUserChain = "DOCKER-USER"
	forwardChain    = "WEFT"
	forwardEvery    = 30 * time.Second
	forwardTime     = 5 * time.Second
)

// forwardRules are for iptables-restore, which takes all of them or none.
const forwardRules = "*filter\n" +
	":" + forwardChain + " - [0:0]\n" +
	"-A " + forwardChain + " -i " + host.VethPrefix + "+ -o docker+ -j RETURN\n" +
	"-A " + forwardChain + " -i " + host.VethPrefix + "+ -o br-+ -j RETURN\n" +
	"-A " + forwardChain + " -i " + host.VethPrefix + "+ -j ACCEPT\n" +
	"-A " + forwardChain + " -o " + host.VethPrefix + "+ -j ACCEPT\n" +
	"-I " + dockerUserChain + " -j " + forwardChain + "\n" +
	"COMMIT\n"

// dockerBridge is there for as long as dockerd was once started: to ask iptables for its chain would make tables on a machine
// that has none.
const dockerBridge = "docker0"

func dockerHere() bool {
	_, err := net.InterfaceByName(dockerBridge)
	return err == nil
}

// keepForwarding looks after it until ctx ends, with or without --docker: pods of others than Docker need it too.
func (d *daemon) keepForwarding(ctx context.Context) error {
	tick := time.NewTicker(forwardEvery)
	defer tick.Stop()
	for {
		if d.cfg.Docker || dockerHere() {
			if err := letForward(ctx); err != nil && ctx.Err() == nil {
				d.log.Warn("docker's filter not opened for pods, will try again", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// letForward puts weft's chain in place for both families, where dockerd has its own.
func letForward(ctx context.Context) error {
	var errs []error
	for _, program := range []string{"iptables", "ip6tables"} {
		if err := iptables(ctx, "", program, "-w", "2", "-n", "-L", dockerUserChain); err != nil {
			continue // no program, no dockerd yet, or one that leaves iptables alone
		}
		if err := iptables(ctx, "", program, "-w", "2", "-C", dockerUserChain, "-j", forwardChain); err == nil {
			continue
		}
		errs = append(errs, iptables(ctx, forwardRules, program+"-restore", "-w", "2", "--noflush"))
	}
	return errors.Join(errs...)
}

// stopForward removes the chain; that there is none is no error.
func stopForward(ctx context.Context) {
	for _, program := range []string{"iptables", "ip6tables"} {
		for _, args := range [][]string{{"-D", dockerUserChain, "-j", forwardChain}, {"-F", forwardChain}, {"-X", forwardChain}} {
			_ = iptables(ctx, "", program, append([]string{"-w", "2"}, args...)...)
		}
	}
}

func iptables(ctx context.Context, in, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, forwardTime)
	defer cancel()
	c := exec.CommandContext(ctx, program, args...)
	c.Stdin = strings.NewReader(in)
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}
