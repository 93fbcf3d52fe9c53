package main

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

// reclaimLook is how often peer remove --wait looks.
const reclaimLook = 500 * time.Millisecond

func (a *app) peerRemoveCommand() *cli.Command {
	return &cli.Command{
		Name:      "remove",
		Usage:     "end the membership of machines that are gone for good; their names or IDs",
		ArgsUsage: "NAME...",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "stolen", Usage: "somebody else has the machine: cut it off alive, and revoke the token that it joined with"},
			&cli.BoolFlag{Name: "force", Usage: "also one that is alive, and take over its space without the word of those that are silent"},
			&cli.BoolFlag{Name: "wait", Usage: "until its space belongs to others"},
		},
		Description: examples("weft peer remove gamma", "weft peer remove --wait gamma delta", "weft peer remove --stolen laptop"),
		Action:      a.ask(1, math.MaxInt, a.peerRemove),
	}
}

func (a *app) peerRemove(c *cli.Context, d *control.Client) error {
	reply, err := d.PeerRemove(c.Context, control.RemoveRequest{
		Peers: c.Args().Slice(), Stolen: c.Bool("stolen"), Force: c.Bool("force"),
	})
	if err != nil {
		return err
	}
	var ids []string
	for _, p := range reply.Removed {
		ids = append(ids, p.ID)
		switch {
		case p.Before:
			a.say("%s was removed before (%s).", p.Name, p.Reason)
		default:
			a.say("%s is removed (%s): it is cut off.", p.Name, p.Reason)
		}
		if p.Token != "" {
			a.say("The token that it joined with is revoked: %s.", p.Token)
		}
		if len(p.Others) > 0 {
			a.say("With the same token joined: %s. Look at them too.", strings.Join(p.Others, ", "))
		}
	}
	a.say("%d of %d members have it on disk.", reply.Told, reply.Members)
	for _, n := range reply.Notes {
		a.say("%s", n)
	}
	if !c.Bool("wait") {
		return nil
	}
	return a.awaitReclaim(c, d, ids)
}

// awaitReclaim returns when the space of the removed belongs to others. It says what is waited for when that changes.
func (a *app) awaitReclaim(c *cli.Context, d *control.Client, ids []string) error {
	said := ""
	for {
		st, err := d.Status(c.Context)
		if err != nil {
			return err
		}
		var waits []string
		for _, r := range st.IPAM.Reclaims {
			if slices.Contains(ids, r.ID) {
				waits = append(waits, r.Reason)
			}
		}
		if len(waits) == 0 {
			a.say("Its space belongs to others now.")
			return nil
		}
		if now := strings.Join(waits, "\n"); now != said {
			said = now
			a.say("%s", now)
		}
		select {
		case <-c.Context.Done():
			return c.Context.Err()
		case <-time.After(reclaimLook):
		}
	}
}
