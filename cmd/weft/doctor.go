package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) doctorCommand() *cli.Command {
	return &cli.Command{
		Name:        "doctor",
		Category:    groupLook,
		Usage:       "check what weft needs of this machine, or what was tried to reach a peer",
		ArgsUsage:   "[PEER]",
		Flags:       []cli.Flag{jsonFlag()},
		Description: examples("weft doctor", "weft doctor beta"),
		Action:      a.ask(0, 1, a.doctor),
	}
}

func (a *app) doctor(c *cli.Context, d *control.Client) error {
	doc, err := d.Doctor(c.Context, control.DoctorRequest{Peer: c.Args().First()})
	if errors.Is(err, control.Unreachable) && c.NArg() == 0 {
		// It may be this machine that keeps the daemon from starting.
		doc, err = a.doctorHere(c)
	}
	if err != nil {
		return err
	}
	if c.Bool("json") {
		if err := a.printJSON(doc); err != nil {
			return err
		}
	} else {
		a.printLines(doctorLines(doc, a.screen()))
	}
	for _, k := range doc.Checks {
		if k.State == control.CheckFailed {
			return &shownError{}
		}
	}
	return nil
}

func (a *app) doctorHere(c *cli.Context) (control.Doctor, error) {
	cfg, err := a.daemonConfig(c)
	if err != nil {
		return control.Doctor{}, err
	}
	cfg.Join = "" // a token in the environment is for another command
	if cfg, err = cfg.Complete(); err != nil {
		return control.Doctor{}, usage(err.Error())
	}
	a.say("The daemon is not running here, so these are the checks that need none.")
	return a.entries.doctor(c.Context, cfg)
}

func doctorLines(d control.Doctor, s screen) []string {
	t := &table{head: []string{"CHECK", "RESULT", "WHY"}, drop: []string{""}}
	for _, k := range d.Checks {
		why := k.Reason
		if k.Hint != "" && k.State != control.CheckOK {
			why += ". " + k.Hint
		}
		t.add(plainCell(k.Name), stateCell(k.State), plainCell(why))
	}
	return t.lines(s, 0)
}
