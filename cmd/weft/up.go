package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) upCommand() *cli.Command {
	return &cli.Command{
		Name:     "up",
		Category: groupCluster,
		Usage:    "run the daemon in the foreground",
		Flags:    settingFlags(),
		Description: examples(
			"weft up --init                     the first machine",
			"weft up --join weft1…              every other one",
			"weft up --join @/root/token --advertise 203.0.113.9",
			"weft up                            wait for weft init or weft join"),
		Action: a.act(0, 0, a.up),
	}
}

func (a *app) up(c *cli.Context) error {
	cfg, err := a.daemonConfig(c)
	if err != nil {
		return err
	}
	if err := a.capable(); err != nil {
		return &control.Error{
			Code: control.Denied, Message: "weft up administers the network of this machine",
			Cause: err.Error(), Hint: "Try: sudo weft up; in a container, add NET_ADMIN and NET_RAW",
		}
	}
	if token := c.String("join"); isLiteral(token) {
		// Whoever can list processes could read it. Does not come back where it works.
		if err := hideToken(token); err != nil {
			return fmt.Errorf("take token out of the command line: %w", err)
		}
	}
	cfg.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	cfg.Build = buildVersion()
	cfg.WireUnit, _ = a.lookup("WEFT_WIRE_UNIT") // set by weft.service
	cfg.Founded = func(r control.InitReply) { a.showFounded(r) }
	cfg.Addressed = func(t control.TokenReply) {
		a.say("This machine has an address now. On every other machine, before %s, type:", t.Expires)
		fmt.Fprintln(a.stdout, joinLine(t.Token))
	}
	if cfg, err = cfg.Complete(); err != nil {
		return usage(err.Error())
	}
	return a.entries.up(c.Context, cfg)
}

// isLiteral tells a token from the place where one is, and from a word that is no secret.
func isLiteral(token string) bool { return strings.HasPrefix(token, "weft1") }
