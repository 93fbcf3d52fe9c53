package host

import (
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
)

// tableState is one owner's part of the table as the kernel has it.
type tableState struct {
	sets   map[string]map[element]bool
	chains map[string][]string // marks of the rules
	same   map[string]bool     // sets that are known to be as wanted
}

// readTable answers nil when there is no table.
func readTable(c *nftables.Conn, owner string, want compiledSet) (*tableState, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", explain(err))
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == Table })
	if i < 0 {
		return nil, nil
	}
	table := tables[i]
	have := &tableState{sets: map[string]map[element]bool{}, chains: map[string][]string{}}
	sets, err := c.GetSets(table)
	if err != nil {
		return nil, fmt.Errorf("list nftables sets: %w", err)
	}
	for _, s := range sets {
		if !owns(owner, s.Name) || s.Anonymous {
			continue
		}
		w, known := want.sets[s.Name]
		if !known {
			have.sets[s.Name] = nil // to be removed, whatever is in it
			continue
		}
		list, err := c.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("list elements of %s: %w", s.Name, err)
		}
		have.sets[s.Name] = fromKernel(w, list)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name != Table || !owns(owner, ch.Name) {
			continue
		}
		rules, err := c.GetRules(table, ch)
		if err != nil {
			return nil, fmt.Errorf("list rules of %s: %w", ch.Name, err)
		}
		marks := []string{}
		for _, r := range rules {
			mark, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			marks = append(marks, mark)
		}
		have.chains[ch.Name] = marks
	}
	return have, nil
}

// send queues the difference between have and want: first what rules refer to, then rules, then what nothing refers to
// any more.
func (want compiledSet) send(c *nftables.Conn, table *nftables.Table, have *tableState) (changes int, err error) {
	for _, name := range slices.Sorted(maps.Keys(want.sets)) {
		n, err := want.sendSet(c, table, name, have)
		if err != nil {
			return changes, err
		}
		changes += n
	}
	var changed []string
	for _, name := range want.order {
		ch := want.chains[name]
		marks, exists := have.chains[name]
		if !exists {
			c.AddChain(kernelChain(table, ch.Chain))
			changes++
		}
		if !exists || !slices.EqualFunc(ch.rules, marks, func(r compiledRule, mark string) bool { return r.mark == mark }) {
			changed = append(changed, name)
		}
	}
	for _, name := range changed {
		ch := &nftables.Chain{Table: table, Name: name}
		c.FlushChain(ch)
		for _, r := range want.chains[name].rules {
			c.AddRule(&nftables.Rule{
				Table: table, Chain: ch, Exprs: r.exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.mark),
			})
		}
		changes++
	}
	var stale []*nftables.Chain
	for _, name := range slices.Sorted(maps.Keys(have.chains)) {
		if _, wanted := want.chains[name]; !wanted {
			ch := &nftables.Chain{Table: table, Name: name}
			c.FlushChain(ch)
			stale = append(stale, ch)
		}
	}
	for _, ch := range stale {
		c.DelChain(ch)
		changes++
	}
	for _, name := range slices.Sorted(maps.Keys(have.sets)) {
		if _, wanted := want.sets[name]; !wanted {
			c.DelSet(&nftables.Set{Table: table, Name: name})
			changes++
		}
	}
	return changes, nil
}

func (want compiledSet) sendSet(c *nftables.Conn, table *nftables.Table, name string, have *tableState) (int, error) {
	if have.same[name] {
		return 0, nil
	}
	spec := want.sets[name]
	kind, err := setType(spec.Type)
	if err != nil {
		return 0, err
	}
	set := &nftables.Set{Table: table, Name: name, KeyType: kind, Interval: spec.Interval, Concatenation: concatenated(spec)}
	present, exists := have.sets[name]
	changes := 0
	if !exists {
		if err := c.AddSet(set, nil); err != nil {
			return 0, fmt.Errorf("add set %s: %w", name, err)
		}
		changes++
	}
	var add, remove []element
	for e := range want.elements[name] {
		if !present[e] {
			add = append(add, e)
		}
	}
	for e := range present {
		if !want.elements[name][e] {
			remove = append(remove, e)
		}
	}
	if err := c.SetDeleteElements(set, toKernel(spec, remove)); err != nil {
		return 0, fmt.Errorf("delete elements of %s: %w", name, err)
	}
	if err := c.SetAddElements(set, toKernel(spec, add)); err != nil {
		return 0, fmt.Errorf("add elements to %s: %w", name, err)
	}
	return changes + len(add) + len(remove), nil
}

func kernelChain(table *nftables.Table, c Chain) *nftables.Chain {
	out := &nftables.Chain{Table: table, Name: c.Name}
	if c.Hook == "" {
		return out
	}
	hooks := map[Hook]*nftables.ChainHook{
		Prerouting: nftables.ChainHookPrerouting, Input: nftables.ChainHookInput,
		Forward: nftables.ChainHookForward, Output: nftables.ChainHookOutput, Postrouting: nftables.ChainHookPostrouting,
	}
	out.Hooknum = hooks[c.Hook]
	out.Priority = new(nftables.ChainPriority(c.Priority))
	out.Type = nftables.ChainTypeFilter
	if c.NAT {
		out.Type = nftables.ChainTypeNAT
	}
	policy := nftables.ChainPolicyAccept // what is not ours passes; what is ours meets a rule
	out.Policy = &policy
	return out
}
