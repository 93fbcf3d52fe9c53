package main

import (
	"errors"
	"strconv"

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
		a.printLines(triedLines(doc, a.screen()))
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

// triedLines are the ways that both ends have tried, and what would make theirs direct.
func triedLines(d control.Doctor, s screen) []string {
	if d.Peer == "" {
		return nil
	}
	t := &table{head: []string{"BY", "WAY", "STATE", "RTT", "LOSS", "MTU", "WHY"}, drop: []string{"MTU", "LOSS"}}
	for _, p := range d.Tried {
		state, loss, mtu := p.State, "", ""
		if p.Active {
			state = "in use"
		}
		if p.RTTms > 0 {
			loss = showPercent(p.Loss)
		}
		if p.MTU > 0 {
			mtu = strconv.Itoa(p.MTU)
		}
		t.add(plainCell(p.By), plainCell(route(control.PathDirect, p.TCP, p.Via, p.Endpoint)), wayCell(state), plainCell(showMS(p.RTTms)),
			plainCell(loss), plainCell(mtu), plainCell(p.Reason))
	}
	lines := []string{""}
	if len(d.Tried) > 0 {
		lines = append(append(lines, t.lines(s, 0)...), "")
	}
	return append(lines, wrap(d.Advice+".", s.columns)...)
}

// wayCell colours the state of a way.
func wayCell(state string) cell {
	switch state {
	case "in use", "works":
		return cell{state, good}
	case "dead":
		return cell{state, bad}
	}
	return cell{state, warn}
}
