package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
	"weft/prog/weftd"
)

func (a *app) initCommand() *cli.Command {
	return &cli.Command{
		Name:     "init",
		Category: groupCluster,
		Usage:    "make a cluster with this machine as its founder",
		Flags:    settingFlags("name", "pool", "pool6", "advertise", "expect-nodes", "accept-overlap"),
		Description: examples(
			"weft init                          prints the line that other machines join with",
			"weft init --pool 10.32.0.0/12 --advertise 203.0.113.9",
			"weft init --pool 10.32.0.0/16,172.24.0.0/20         two ranges, as one",
			"weft init --pool none --pool6 fd12:3456:789a::/48   IPv6 alone"),
		Action: a.ask(0, 0, a.init),
	}
}

func (a *app) init(c *cli.Context, d *control.Client) error {
	r, err := initRequest(c)
	if err != nil {
		return err
	}
	reply, err := d.Init(c.Context, r)
	if errors.Is(err, control.Unreachable) {
		// Nobody to tell: make it here, and the daemon finds it when it starts.
		reply, err = a.initHere(c, r)
	}
	if err != nil {
		return err
	}
	a.showFounded(reply)
	return nil
}

// initRequest holds only what was typed: the daemon knows its own settings.
func initRequest(c *cli.Context) (control.InitRequest, error) {
	var typed weftd.Config
	if err := flagsInto(c, &typed, true); err != nil {
		return control.InitRequest{}, err
	}
	r := control.InitRequest{
		Name: typed.Name, Pools: typed.Pools, NoPool: typed.NoPool, ExpectNodes: typed.ExpectNodes,
		AcceptOverlap: typed.AcceptOverlap, Advertise: advertised(typed),
	}
	switch {
	case typed.NoPool6:
		r.Pool6 = "none"
	case typed.Pool6.IsValid():
		r.Pool6 = typed.Pool6.String()
	}
	return r, nil
}

func advertised(cfg weftd.Config) []string {
	var all []string
	for _, ap := range cfg.Advertise {
		if ap.Port() == 0 {
			all = append(all, ap.Addr().String())
		} else {
			all = append(all, ap.String())
		}
	}
	return all
}

func (a *app) initHere(c *cli.Context, r control.InitRequest) (control.InitReply, error) {
	cfg, err := a.daemonConfig(c)
	if err != nil {
		return control.InitReply{}, err
	}
	cfg.Join = "" // a token in the environment is for another command
	cfg.Build = buildVersion()
	cfg.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: max(cfg.LogLevel, slog.LevelWarn)}))
	if cfg, err = cfg.Complete(); err != nil {
		return control.InitReply{}, usage(err.Error())
	}
	if err := a.capable(); err != nil {
		return control.InitReply{}, &control.Error{
			Code: control.Denied, Message: "weft init writes to " + cfg.State,
			Cause: err.Error(), Hint: "Try: sudo weft init",
		}
	}
	reply, err := a.entries.init(c.Context, cfg, r)
	if err == nil && !reply.Existed {
		reply.Notes = append(reply.Notes, "The daemon is not running. Start it here first: weft up")
	}
	return reply, err
}

// showFounded prints the join line, alone on stdout.
func (a *app) showFounded(r control.InitReply) {
	var pools []string
	for _, p := range r.Pools {
		pools = append(pools, p.String())
	}
	if r.Existed {
		a.say("This machine is in cluster %s already, as %s. To let another one in: weft token create", short(r.Cluster), r.Name)
		return
	}
	a.say("Made cluster %s with %s as its founder; pods get addresses of %s.", short(r.Cluster), r.Name, strings.Join(pools, " and "))
	for _, n := range r.Notes {
		a.say("%s", n)
	}
	if r.Token != "" {
		a.say("On every other machine, type:")
		fmt.Fprintln(a.stdout, joinLine(r.Token))
	}
}

func joinLine(token string) string { return "weft up --join " + token }
