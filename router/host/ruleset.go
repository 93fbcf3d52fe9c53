package host

import (
	"fmt"
	"strings"
)

// Table is the name of weft's nftables table (family inet). It is permanent: once made it is changed by elements and
// chains, never swapped as a whole, because packets slip through while the kernel exchanges a table's hooks.
const Table = "weft"

// Ruleset is the part of the table that one owner wants. Its sets and chains are exactly those of the table whose
// names start with Owner and a dot; the owner with the empty name has those without a dot.
type Ruleset struct {
	Owner  string
	Sets   []FilterSet
	Chains []Chain
}

// FilterSet is a named set. The type of a set never changes under one name.
type FilterSet struct {
	Name     string
	Type     string // as nft writes it: "ipv4_addr", "ifname . ipv6_addr", "ether_addr . ipv4_addr"
	Interval bool   // elements may be prefixes; overlapping ones are folded into the wider
	Elements []string
}

// Hook is where a base chain sees packets.
type Hook string

// The hooks of the inet family that weft uses.
const (
	Prerouting  Hook = "prerouting"
	Input       Hook = "input"
	Forward     Hook = "forward"
	Output      Hook = "output"
	Postrouting Hook = "postrouting"
)

// Chain is a list of rules. Hook and priority of a chain never change under one name.
type Chain struct {
	Name     string
	Hook     Hook // empty for a chain that others jump to
	Priority int
	NAT      bool // type nat instead of filter
	// Rules are written in nft's own words; compileRule knows the part of the language that weft uses.
	Rules []string
}

// Drops counts what the rules with a counter dropped, by the rule's comment, and what gates did, as DropGate.
type Drops map[string]uint64

// DropGate is the reason of what a gate dropped: a transport's device brought it, and it went none of the ways that are open.
const DropGate = "peer-gate"

// String lists the rule set as nft would read it.
func (rs Ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", Table)
	for _, s := range rs.Sets {
		fmt.Fprintf(&b, "\tset %s {\n\t\ttype %s\n", s.Name, s.Type)
		if s.Interval {
			b.WriteString("\t\tflags interval\n")
		}
		if len(s.Elements) > 0 {
			fmt.Fprintf(&b, "\t\telements = { %s }\n", strings.Join(s.Elements, ", "))
		}
		b.WriteString("\t}\n")
	}
	for _, c := range rs.Chains {
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != "" {
			kind := "filter"
			if c.NAT {
				kind = "nat"
			}
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", kind, c.Hook, c.Priority)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}
