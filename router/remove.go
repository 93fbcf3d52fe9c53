package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"weft/router/host"
)

// remember writes the present values of machine-wide sysctls to the undo file before they are changed for the first time.
func (r *Router) remember(ctx context.Context, have *host.Snapshot, changes []host.Change) error {
	if r.cfg.Undo == "" {
		return nil
	}
	former, err := readUndo(r.cfg.Undo)
	if err != nil {
		return err
	}
	before := len(former)
	dragged, err := r.dragged(ctx, have, changes)
	if err != nil {
		return err
	}
	for key, value := range dragged {
		if _, known := former[key]; !known {
			former[key] = value
		}
	}
	for _, c := range changes {
		if c.Sysctl == nil || strings.Contains(c.Sysctl.Key, "/"+host.DevicePrefix) {
			continue
		}
		if _, known := former[c.Sysctl.Key]; !known {
			former[c.Sysctl.Key] = have.Sysctls[c.Sysctl.Key]
		}
	}
	if len(former) == before {
		return nil
	}
	return writeUndo(r.cfg.Undo, former)
}

// dragged reads what the kernel changes by itself when it is made to forward, and what giving the one value back would not
// give back: whether it takes redirects, and interfaces that had another value than the machine.
func (r *Router) dragged(ctx context.Context, have *host.Snapshot, changes []host.Change) (map[string]string, error) {
	var keys []string
	for _, c := range changes {
		if c.Sysctl == nil || c.Sysctl.Key != keyForward4 && c.Sysctl.Key != keyForward6 {
			continue
		}
		family := strings.Split(c.Sysctl.Key, "/")[1]
		if family == "ipv4" {
			keys = append(keys, "net/ipv4/conf/all/accept_redirects")
		}
		keys = append(keys, "net/"+family+"/conf/default/forwarding")
		for _, l := range have.Links {
			if !isOurs(l.Name) {
				keys = append(keys, "net/"+family+"/conf/"+l.Name+"/forwarding")
			}
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	now, err := r.cfg.Host.Snapshot(ctx, keys)
	if err != nil {
		return nil, err
	}
	return now.Sysctls, nil
}

func readUndo(path string) (map[string]string, error) {
	former := make(map[string]string)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return former, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read former sysctls: %w", err)
	}
	if err := json.Unmarshal(b, &former); err != nil {
		return nil, fmt.Errorf("read former sysctls from %s: %w", path, err)
	}
	if former == nil { // of a file that holds null
		former = make(map[string]string)
	}
	return former, nil
}

// writeUndo replaces the file in one step: a torn one would lose what the machine was like before.
func writeUndo(path string, former map[string]string) error {
	b, err := json.MarshalIndent(former, "", "\t")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".undo-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("keep former sysctls: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it has its new name by then
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("keep former sysctls: %w", err)
	}
	return nil
}

// Down takes the node off the network and removes nothing that protects: the transports go, so that routes to peers give
// way to the unreachable ones; pods keep their addresses, and the guard stays. Run must have ended.
func (r *Router) Down(ctx context.Context) error {
	r.machine.Lock()
	defer r.machine.Unlock()
	var errs []error
	for _, d := range r.drivers {
		if d.t != nil {
			if err := d.t.Close(); err != nil {
				errs = append(errs, fmt.Errorf("close transport %s: %w", d.Name, err))
			}
			d.t, d.have = nil, nil
		}
		// Also one that this run never came to open.
		if err := r.cfg.Host.Apply(ctx, []host.Change{{Op: host.Delete, Link: &host.Link{Name: d.Device}}}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Remove makes the machine as it was before weft came: devices, pods' connections, routes, rules, addresses, sysctls and
// the nftables table. What refuses goes last. It needs no router, and goes on after an error to remove what it can. undo is
// the file of Config.Undo, which is removed too.
func Remove(ctx context.Context, h Host, undo string) error {
	have, err := h.Snapshot(ctx, nil)
	if err != nil {
		return fmt.Errorf("remove weft's network state: %w", err)
	}
	var first, last []host.Change
	for i, l := range have.Links {
		if strings.HasPrefix(l.Name, host.DevicePrefix) || l.Name == host.GuestDevice ||
			strings.HasPrefix(l.Name, host.VethPrefix) && l.Kind == "veth" {
			first = append(first, host.Change{Op: host.Delete, Link: &have.Links[i]})
		}
	}
	var pools []netip.Prefix
	for i, r := range have.Routes {
		switch {
		case r.Ours && r.Kind == host.Unreachable:
			pools = append(pools, r.Dst)
			last = append(last, host.Change{Op: host.Delete, Route: &have.Routes[i]})
		case r.Ours && !isOurs(r.Link): // the others go with their device
			first = append(first, host.Change{Op: host.Delete, Route: &have.Routes[i]})
		}
	}
	for _, device := range sortedKeys(have.Gates) { // and policy rules, where those stand in for them
		last = append(last, host.Change{Op: host.Delete, Gate: &host.Gate{Link: device}})
	}
	for i, a := range have.Addresses {
		if a.Link == "lo" && holds(pools, a.Prefix.Addr()) {
			first = append(first, host.Change{Op: host.Delete, Address: &have.Addresses[i]})
		}
	}
	var former map[string]string
	var errs []error
	if undo != "" {
		if former, err = readUndo(undo); err != nil {
			errs = append(errs, err)
		}
	}
	present, err := h.Snapshot(ctx, slices.Collect(maps.Keys(former)))
	if err != nil {
		return fmt.Errorf("remove weft's network state: %w", err)
	}
	var sysctls []host.Change
	for _, key := range sortedKeys(former) {
		if _, exists := present.Sysctls[key]; exists { // whatever it is now: an earlier one may drag it along
			sysctls = append(sysctls, host.Change{Sysctl: &host.Sysctl{Key: key, Value: former[key]}})
		}
	}
	for _, c := range slices.Concat(first, sysctls, last) {
		if err := h.Apply(ctx, []host.Change{c}); err != nil {
			errs = append(errs, err)
		}
	}
	if err := h.RemoveFilter(ctx); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return fmt.Errorf("remove weft's network state: %w", errors.Join(errs...))
	}
	if undo != "" {
		if err := os.Remove(undo); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove former sysctls: %w", err)
		}
	}
	return nil
}

// sortedKeys lists them in the order in which they are given back: an interface that follows router advertisements must do
// so by the time the machine stops forwarding, and what that drags along comes after it.
func sortedKeys(m map[string]string) []string {
	turn := func(key string) int {
		switch {
		case strings.HasSuffix(key, "/accept_ra"):
			return 0
		case key == keyForward4 || key == keyForward6:
			return 1
		}
		return 2
	}
	keys := slices.Sorted(maps.Keys(m))
	slices.SortStableFunc(keys, func(a, b string) int { return turn(a) - turn(b) })
	return keys
}
