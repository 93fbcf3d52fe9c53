package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
	"weft/prog/drawing"
)

func (a *app) graphCommand() *cli.Command {
	return &cli.Command{
		Name:     "graph",
		Category: groupLook,
		Usage:    "draw the mesh: who reaches whom directly, relayed or not at all, and how fast",
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: "format", Value: "html",
				Usage: "`FORMAT` of the picture: html (one page that opens anywhere), svg, or dot for Graphviz",
			},
			jsonFlag(),
		},
		Description: examples("weft graph > mesh.html", "weft graph --format svg > mesh.svg", "weft graph --format dot | dot -Tpdf > mesh.pdf"),
		Action:      a.ask(0, 0, a.graph),
	}
}

func (a *app) graph(c *cli.Context, d *control.Client) error {
	draw := map[string]func(control.Graph) ([]byte, error){
		"html": drawing.HTML,
		"svg":  func(g control.Graph) ([]byte, error) { return drawing.SVG(g), nil },
		"dot":  func(g control.Graph) ([]byte, error) { return drawing.DOT(g), nil },
	}[c.String("format")]
	if draw == nil {
		return usage(fmt.Sprintf("--format: want html, svg or dot, got %q", c.String("format")))
	}
	g, err := d.Graph(c.Context)
	if err != nil {
		return err
	}
	for _, note := range g.Notes {
		a.say("%s.", note)
	}
	if c.Bool("json") {
		return a.printJSON(g)
	}
	picture, err := draw(g)
	if err != nil {
		return err
	}
	if _, err := a.stdout.Write(picture); err != nil {
		return fmt.Errorf("print picture: %w", err)
	}
	return nil
}
