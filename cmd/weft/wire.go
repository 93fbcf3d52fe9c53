package main

import (
	"cmp"
	"path/filepath"
	"runtime"

	"github.com/urfave/cli/v2"

	"weft/prog/weftd"
)

// wireCommand is for the daemon to start, not for people, so it is not listed.
func (a *app) wireCommand() *cli.Command {
	return &cli.Command{
		Name:      "wire",
		Hidden:    true,
		Usage:     "run the data plane; the daemon starts it",
		ArgsUsage: "[SOCKET]",
		Flags: []cli.Flag{&cli.BoolFlag{
			Name: "beside", Usage: "start one that will follow the one that runs; for the unit's reload",
		}},
		Action: a.act(0, 1, func(c *cli.Context) error {
			socket := c.Args().First()
			if socket == "" {
				cfg, err := a.clientConfig(c)
				if err != nil {
					return err
				}
				socket = filepath.Join(cmp.Or(cfg.State, weftd.DefaultState), "wire.sock")
			}
			if c.Bool("beside") {
				return a.entries.beside(socket)
			}
			runtime.GOMAXPROCS(wireProcessors(runtime.GOMAXPROCS(0)))
			return a.entries.wire(c.Context, socket, buildVersion())
		}),
	}
}

// wireProcessors is on how many of a machine's processors the data plane runs Go code at a time: half. The others carry its packets
// on, through the kernel and to the pods, and a processor more would mostly look for work.
func wireProcessors(machine int) int { return max(machine/2, 1) }
