package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"weft/test/netlab"
)

// Columns: what a cable does with super-packets.
const (
	columnOff = "off" // it takes packets of the MTU only; the receiver joins them again: a network card
	columnOn  = "on"  // they pass whole, as between veths; flatters whoever sends large
)

func columns() []string { return []string{columnOff, columnOn} }

// duel is two contenders that are measured one right after the other, and the first told in terms of the second.
type duel struct {
	of, against string
	quantities  []string           // none: all
	bars        map[string]float64 // by quantity, for both columns; nil: those of the quantities
	reference   bool               // only to see where things stand: half as long, no bars
}

func (d duel) String() string { return d.of + " / " + d.against }

// duels are the tables in their order; with another build of weft there is only one.
func duels(other bool) []duel {
	if other {
		return []duel{{of: nameSleeve, against: nameOther, reference: true}}
	}
	all, user := []string{qFlow, qFlowAll, qFlows, qFlowsAll}, []string{qFlow, qFlowCPU, qFlowAll, qFlows, qFlowsCPU, qFlowsAll}
	near := map[string]float64{qFlow: 0.97, qFlows: 0.97}
	return []duel{
		{of: nameSleeve, against: nameWireguard},
		{of: nameWeftVXLAN, against: nameVXLANNAT, quantities: all, bars: near},
		{of: nameWeftVXLAN, against: nameVXLAN, quantities: all, reference: true},
		{of: nameWeftUser, against: nameGoNAT, quantities: user, bars: near},
		{of: nameWeftUser, against: nameWireguard, quantities: user, reference: true},
		{of: nameWeftKernel, against: nameKernel, quantities: all, bars: map[string]float64{qFlowAll: 1.15, qFlowsAll: 1.15}},
		{of: nameWeftKernel, against: nameKernelNAT, quantities: []string{qFlowAll, qFlowsAll}, reference: true},
		{of: nameSleeve, against: nameVXLAN, quantities: []string{qFlow}, reference: true},
		{of: nameSleeve, against: namePlain, quantities: []string{qFlow, qPing}, reference: true},
	}
}

// round is one measurement of each side of a duel.
type round struct{ of, against sample }

// speed measures all duels in both columns and prints the tables.
func speed(ctx context.Context, out io.Writer, lab *netlab.Lab, o options) error {
	bd := &bed{Lab: lab, options: o}
	all, err := bd.assemble(ctx, out)
	if err != nil {
		return err
	}
	for _, d := range o.duels {
		of, against := all[d.of], all[d.against]
		if of == nil || against == nil {
			continue
		}
		if of.device != "" && against.device != "" && !d.reference {
			if err := compareDevices(ctx, out, of, against); err != nil {
				return err
			}
		}
		t := newTable(d, o)
		for _, column := range columns() {
			if o.column != "" && o.column != column {
				continue
			}
			fmt.Fprintf(os.Stderr, "%v, segmentation %s …\n", d, column)
			rounds, err := bd.duel(ctx, out, d, of, against, column)
			if err != nil {
				return err
			}
			t.fill(column, rounds)
		}
		t.print(out)
	}
	return nil
}

// assemble makes all contenders. One that this machine cannot have is left out with a sentence; the sleeve must stand.
func (bd *bed) assemble(ctx context.Context, out io.Writer) (map[string]*contender, error) {
	patience := netlab.Patience(time.Minute)
	all := map[string]*contender{}
	for _, b := range []struct {
		name string
		make func(context.Context) (*contender, error)
	}{
		{nameSleeve, bd.sleeve},
		{nameWireguard, bd.wireguardGo},
		{nameGoNAT, bd.wireguardGoNAT},
		{nameWeftVXLAN, bd.weftVXLAN},
		{nameWeftUser, bd.weftUser},
		{nameWeftKernel, bd.weftKernel},
		{nameKernel, bd.wireguardKernel},
		{nameKernelNAT, bd.wireguardNAT},
		{nameVXLAN, bd.vxlan},
		{nameVXLANNAT, bd.vxlanNAT},
		{namePlain, bd.plain},
		{nameOther, bd.otherSleeve},
	} {
		if !slices.ContainsFunc(bd.duels, func(d duel) bool { return d.of == b.name || d.against == b.name }) {
			continue
		}
		within, cancel := context.WithTimeout(ctx, patience)
		c, err := b.make(within)
		if err == nil {
			err = bd.serve(within, c)
		}
		cancel()
		switch {
		case err != nil && (ctx.Err() != nil || b.name == nameSleeve || b.name == nameOther):
			return nil, fmt.Errorf("set up %s: %w", b.name, err)
		case err != nil:
			fmt.Fprintf(out, "without %s: %v\n", b.name, err)
			continue
		}
		all[b.name] = c
	}
	return all, nil
}

// duel measures both sides in turn, as often as pairs are wanted. Who begins changes from pair to pair.
func (bd *bed) duel(ctx context.Context, out io.Writer, d duel, of, against *contender, column string) ([]round, error) {
	for _, c := range []*contender{of, against} {
		c.cable.SetSegmentation(column == columnOn)
		c.cable.SetCoalescing(column == columnOff)
	}
	var rounds []round
	for i := range bd.pairs + 1 {
		r := round{sample{}, sample{}}
		for what := range measureSilent + 1 {
			if !bd.wanted(d, what) {
				continue
			}
			length := bd.length
			if d.reference && bd.other == "" {
				length /= 2
			}
			if i == 0 { // not counted: everything warms up, handshakes are done
				length = min(length, 200*time.Millisecond)
			}
			sides := []func() error{
				func() error { return bd.add(r.of, of, what, length) },
				func() error { return bd.add(r.against, against, what, length) },
			}
			if i%2 == 1 {
				slices.Reverse(sides)
			}
			for _, side := range sides {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				if err := side(); err != nil {
					return nil, err
				}
			}
		}
		if i == 0 {
			continue
		}
		rounds = append(rounds, r)
		if bd.verbose {
			fmt.Fprintf(out, "%s %s %d: %v %v\n", d.of, column, i, r.of, r.against)
		}
	}
	return rounds, nil
}

// wanted reports whether a measurement yields something for the table.
func (bd *bed) wanted(d duel, what int) bool {
	return slices.ContainsFunc(bd.quantities, func(q quantity) bool { return q.needs == what && d.shows(q.name) })
}

func (d duel) shows(name string) bool {
	return len(d.quantities) == 0 || slices.Contains(d.quantities, name)
}

func (bd *bed) add(s sample, c *contender, what int, length time.Duration) error {
	got, err := bd.measure(c, what, length)
	if err != nil {
		return fmt.Errorf("measure %s: %w", c.name, err)
	}
	maps.Copy(s, got)
	return nil
}
