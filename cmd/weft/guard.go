package main

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
	"weft/prog/weftd"
)

// guardCommand is for the unit that runs before the network, not for people, so it is not listed.
func (a *app) guardCommand() *cli.Command {
	return &cli.Command{
		Name:        "guard",
		Hidden:      true,
		Usage:       "refuse packets of the pools until the daemon runs; weft-guard.service starts it",
		Description: "weft guard",
		Action:      a.act(0, 0, a.guard),
	}
}

func (a *app) guard(c *cli.Context) error {
	cfg, err := a.guardConfig(c)
	if err != nil {
		return err
	}
	if err := a.capable(); err != nil {
		return &control.Error{
			Code: control.Denied, Message: "weft guard sets routes and rules of this machine",
			Cause: err.Error(), Hint: "Try: sudo weft guard",
		}
	}
	g, err := a.entries.guard(c.Context, cfg)
	if err != nil {
		return err
	}
	var pools []string
	for _, p := range g.Pools {
		pools = append(pools, p.String())
	}
	switch list := strings.Join(pools, " and "); {
	case len(pools) == 0:
		a.say("This machine is in no cluster: nothing to guard.")
	case g.Running:
		a.say("weft runs, and guards %s.", list)
	case g.Made:
		a.say("Guards %s until weft runs.", list)
	default:
		a.say("%s: guarded already.", list)
	}
	return nil
}

// guardConfig forgives a configuration file that the daemon would refuse: a typing error must not open the guard. What
// it would have opened stays closed then.
func (a *app) guardConfig(c *cli.Context) (weftd.Config, error) {
	var cfg weftd.Config
	name, asked := a.configFile(c)
	if err := cfg.Load(name); err != nil {
		cfg = weftd.Config{}
		if asked || !errors.Is(err, fs.ErrNotExist) {
			a.say("Guards without the configuration: %v", err)
		}
	}
	if err := a.override(c, &cfg, true); err != nil {
		return weftd.Config{}, err
	}
	// A guard has no name, and makes and joins nothing.
	cfg.Name, cfg.Init, cfg.Join = "guard", false, ""
	done, err := cfg.Complete()
	if err != nil {
		a.say("Guards without the configuration: %v", err)
		done, err = weftd.Config{State: cfg.State, Name: cfg.Name}.Complete()
	}
	return done, err
}
