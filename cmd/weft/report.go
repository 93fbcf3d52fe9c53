package main

import (
	"github.com/urfave/cli/v2"

	"weft/prog/control"
)

func (a *app) reportCommand() *cli.Command {
	return &cli.Command{
		Name:        "report",
		Category:    groupLook,
		Usage:       "everything that helps to understand a fault, as JSON, without secrets",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "as always"}},
		Description: "weft report > report.json",
		Action: a.ask(0, 0, func(c *cli.Context, d *control.Client) error {
			r, err := d.Report(c.Context)
			if err != nil {
				return err
			}
			return a.printJSON(r)
		}),
	}
}
