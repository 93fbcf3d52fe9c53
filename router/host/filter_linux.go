package host

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// filterBuffer is what the netlink sockets are given: a transaction is one message, and the answers to a large one
	// do not fit into the default.
	filterBuffer = 8 << 20
	// filterRounds bounds how often the table is read, changed and read again until nothing differs.
	filterRounds = 4
)

// filter keeps weft's nftables table. Nothing that others did to it is missed: the kernel counts transactions, and where one
// that is not ours came in between, the table is read anew. Reading takes milliseconds, and pods come and go in hundreds.
// What the last rule sets were is kept, so that a table that vanished comes back complete in one transaction.
type filter struct {
	h *Host

	mu    sync.Mutex // guards what follows, and makes one transaction at a time
	parts map[string]compiledSet
	known map[string]compiledSet // what the kernel held of each owner at generation gen
	gen   uint32                 // 0: nothing is known
	line  *nftables.Conn         // for what follows known; nil after an error, whose leftovers the next would meet
}

func (f *filter) init(h *Host) { f.h, f.parts = h, make(map[string]compiledSet) }

// compiledSet is a rule set checked and encoded.
type compiledSet struct {
	sets     map[string]FilterSet
	elements map[string]map[element]bool
	encoded  map[string]map[string]element // what is in elements and what was folded there, as it was written
	chains   map[string]compiledChain
	order    []string // of the chains
}

type compiledChain struct {
	Chain
	rules []compiledRule
}

type compiledRule struct {
	exprs []expr.Any
	mark  string // comment by which the rule is known again: its name and the hash of its text
}

// compile checks a whole rule set before anything is changed. What is in last already is taken from there: of hundreds of
// elements and dozens of rules a pod changes four.
func compile(rs Ruleset, last compiledSet) (compiledSet, error) {
	out := compiledSet{
		sets: map[string]FilterSet{}, elements: map[string]map[element]bool{}, encoded: map[string]map[string]element{},
		chains: map[string]compiledChain{},
	}
	typed := true // every set that there was is of the same type still
	for _, s := range rs.Sets {
		if !owns(rs.Owner, s.Name) {
			return out, fmt.Errorf("set %s: not a name of owner %q", s.Name, rs.Owner)
		}
		out.sets[s.Name] = s
		was := last.sets[s.Name]
		if was.Type != s.Type || was.Interval != s.Interval {
			typed, was = false, FilterSet{}
		}
		if was.Name != "" && slices.Equal(was.Elements, s.Elements) {
			out.elements[s.Name], out.encoded[s.Name] = last.elements[s.Name], last.encoded[s.Name]
			continue
		}
		known := last.encoded[s.Name]
		if was.Name == "" {
			known = nil
		}
		var err error
		if out.elements[s.Name], out.encoded[s.Name], err = encodeElements(s, known); err != nil {
			return out, err
		}
	}
	for _, c := range rs.Chains {
		if !owns(rs.Owner, c.Name) {
			return out, fmt.Errorf("chain %s: not a name of owner %q", c.Name, rs.Owner)
		}
		out.order = append(out.order, c.Name)
		if was, ok := last.chains[c.Name]; ok && typed && slices.Equal(was.Rules, c.Rules) {
			out.chains[c.Name] = compiledChain{c, was.rules}
			continue
		}
		cc := compiledChain{Chain: c}
		for _, rule := range c.Rules {
			exprs, comment, err := compileRule(rule, out.sets)
			if err != nil {
				return out, fmt.Errorf("chain %s: %w", c.Name, err)
			}
			sum := sha256.Sum256([]byte(rule))
			cc.rules = append(cc.rules, compiledRule{exprs, strings.TrimSpace(comment + " #" + hex.EncodeToString(sum[:6]))})
		}
		out.chains[c.Name] = cc
	}
	return out, nil
}

// unchanged reports whether a set is that of another compilation, of which this one took it.
func (want compiledSet) unchanged(name string, from compiledSet) bool {
	was, ok := from.sets[name]
	is := want.sets[name]
	return ok && was.Type == is.Type && was.Interval == is.Interval && slices.Equal(was.Elements, is.Elements)
}

func owns(owner, name string) bool {
	before, _, dotted := strings.Cut(name, ".")
	if owner == "" {
		return !dotted
	}
	return dotted && before == owner
}

// conn opens a connection for one reading or transaction; a lasting one would carry an error's leftovers into the next.
func (f *filter) conn() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(f.h.ns)),
		nftables.WithSockOptions(func(c *mnetlink.Conn) error {
			// Without the privilege to force them the buffers are as large as the machine allows, which does for all but
			// the largest rule sets.
			_ = c.SetReadBuffer(filterBuffer)
			_ = c.SetWriteBuffer(filterBuffer)
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", explain(err))
	}
	return c, nil
}

// Filter makes one owner's part of the table equal to want, and reports how many changes that took. A rule set without
// sets and chains removes the owner's part. The slices in want are the filter's from then on and must not be changed.
func (h *Host) Filter(ctx context.Context, want Ruleset) (int, error) {
	f := &h.filter
	f.mu.Lock()
	defer f.mu.Unlock()
	part, err := compile(want, f.parts[want.Owner])
	if err != nil {
		return 0, fmt.Errorf("compile nftables rules: %w", err)
	}
	f.parts[want.Owner] = part
	if len(part.sets) == 0 && len(part.chains) == 0 {
		delete(f.parts, want.Owner)
	}
	if n, ok := f.delta(want.Owner, part); ok {
		return n, nil
	}
	total := 0
	var last error
	for range filterRounds {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := f.round(want.Owner, part)
		total += n
		if n == 0 && err == nil {
			return total, nil
		}
		// An error may come although the kernel has committed, or because somebody else changed the table meanwhile: what
		// counts is what the next reading says.
		last = err
	}
	if last == nil {
		last = errors.New("the table does not stay as it was set; does another program change it?")
	}
	return total, fmt.Errorf("set nftables table %s: %w", Table, last)
}

// delta sends what differs from what the kernel is known to hold, provided that it still does. It reports whether the table
// is now as wanted.
func (f *filter) delta(owner string, want compiledSet) (changes int, ok bool) {
	have, known := f.known[owner]
	if !known {
		return 0, false
	}
	if f.line == nil {
		var err error
		if f.line, err = f.conn(); err != nil {
			f.line = nil
			return 0, false
		}
	}
	defer func() {
		if !ok {
			f.hangUp()
		}
	}()
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
	changes, err := want.send(f.line, table, want.beside(have))
	switch {
	case err != nil:
		return 0, false
	case changes == 0:
		gen, err := f.generation()
		return 0, err == nil && gen == f.gen
	}
	if err := f.line.FlushWithGenID(f.gen); err != nil {
		return 0, false
	}
	f.gen = nextGeneration(f.gen)
	f.known[owner] = want
	return changes, true
}

// hangUp closes the line, with what may be left in it.
func (f *filter) hangUp() {
	if f.line != nil {
		_ = f.line.CloseLasting()
		f.line = nil
	}
}

// beside is what the kernel is known to hold, as readTable would find it, next to what is wanted.
func (want compiledSet) beside(known compiledSet) *tableState {
	have := &tableState{sets: known.elements, chains: make(map[string][]string, len(known.chains)), same: make(map[string]bool)}
	for name := range want.sets {
		have.same[name] = want.unchanged(name, known)
	}
	for name, ch := range known.chains {
		marks := make([]string, len(ch.rules))
		for i, r := range ch.rules {
			marks[i] = r.mark
		}
		have.chains[name] = marks
	}
	return have
}

// round reads the owner's part, and sends what differs as one transaction, if nobody else made one since.
func (f *filter) round(owner string, want compiledSet) (changes int, err error) {
	gen, err := f.generation()
	if err != nil {
		return 0, err
	}
	if gen != f.gen {
		f.known, f.gen = make(map[string]compiledSet), gen
	}
	c, err := f.conn()
	if err != nil {
		return 0, err
	}
	defer c.CloseLasting()
	have, err := readTable(c, owner, want)
	if err != nil {
		return 0, err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
	if have == nil { // complete, with every owner's part, so that no packet ever meets half of it
		f.known = make(map[string]compiledSet)
		if len(f.parts) == 0 {
			return 0, nil
		}
		table = c.AddTable(table)
		for _, o := range slices.Sorted(maps.Keys(f.parts)) {
			n, err := f.parts[o].send(c, table, &tableState{})
			if err != nil {
				return 0, err
			}
			changes += n
		}
		changes++
	} else if changes, err = want.send(c, table, have); err != nil {
		return 0, err
	}
	if changes == 0 {
		if now, err := f.generation(); err == nil && now == gen {
			f.known[owner] = want
		}
		return 0, nil
	}
	delete(f.known, owner)
	if err := c.FlushWithGenID(gen); err != nil {
		return 0, err
	}
	f.gen = nextGeneration(gen)
	return changes, nil
}

// nextGeneration is how the kernel counts: it leaves out zero.
func nextGeneration(gen uint32) uint32 {
	if gen++; gen == 0 {
		gen++
	}
	return gen
}

// generation asks the kernel how many transactions there were in this network namespace.
func (f *filter) generation() (uint32, error) {
	c, err := mnetlink.Dial(unix.NETLINK_NETFILTER, &mnetlink.Config{NetNS: int(f.h.ns)})
	if err != nil {
		return 0, fmt.Errorf("open nftables: %w", explain(err))
	}
	defer c.Close() //nolint:errcheck // it was only asked
	answers, err := c.Execute(mnetlink.Message{
		Header: mnetlink.Header{
			Type:  mnetlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN),
			Flags: mnetlink.Request,
		},
		Data: make([]byte, 4), // nfgenmsg: any family
	})
	if err != nil {
		return 0, fmt.Errorf("ask for nftables' generation: %w", explain(err))
	}
	for _, m := range answers {
		if len(m.Data) < 4 {
			continue
		}
		attrs, err := mnetlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, fmt.Errorf("read nftables' generation: %w", err)
		}
		attrs.ByteOrder = binary.BigEndian
		for attrs.Next() {
			if attrs.Type() == unix.NFTA_GEN_ID {
				return attrs.Uint32(), nil
			}
		}
	}
	return 0, errors.New("ask for nftables' generation: no answer")
}

// RemoveFilter deletes the table with everything in it.
func (h *Host) RemoveFilter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f := &h.filter
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.parts)
	f.known, f.gen = nil, 0
	f.hangUp()
	c, err := f.conn()
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: Table})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete nftables table %s: %w", Table, err)
	}
	return nil
}
