package host

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Drops reads the counters of all rules that have one and a comment.
func (h *Host) Drops(ctx context.Context) (Drops, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := h.filter.conn()
	if err != nil {
		return nil, err
	}
	defer c.CloseLasting()
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	drops := make(Drops)
	for _, ch := range chains {
		if ch.Table.Name != Table {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return nil, fmt.Errorf("list rules of %s: %w", ch.Name, err)
		}
		for _, r := range rules {
			mark, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			name, _, _ := strings.Cut(mark, " #")
			for _, e := range r.Exprs {
				if counter, ok := e.(*expr.Counter); ok && name != "" && name[0] != '#' {
					drops[name] += counter.Packets
				}
			}
		}
	}
	gates, err := h.gateDrops()
	if err != nil {
		return nil, err
	}
	if gates > 0 {
		drops[DropGate] = gates
	}
	return drops, nil
}
