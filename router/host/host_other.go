//go:build !linux

package host

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"time"
)

var errOther = fmt.Errorf("weft's network devices: %w: %s has none of what they need; weft runs on Linux", ErrUnsupported,
	runtime.GOOS)

// Host is the machine as seen from one network namespace.
type Host struct{}

// Probe tries a feature by the real operation.
type Probe func(context.Context) error

// MaxTUNQueues is the most queues that a device may have here.
const MaxTUNQueues = 16

func Open(string, *slog.Logger) (*Host, error)                     { return nil, errOther }
func Do(string, func() error) error                                { return errOther }
func (*Host) Close() error                                         { return nil }
func (*Host) Do(func() error) error                                { return errOther }
func (*Host) IPv6() error                                          { return errOther }
func (*Host) Apply(context.Context, []Change) error                { return errOther }
func (*Host) Filter(context.Context, Ruleset) (int, error)         { return 0, errOther }
func (*Host) RemoveFilter(context.Context) error                   { return errOther }
func (*Host) Drops(context.Context) (Drops, error)                 { return nil, errOther }
func (*Host) Plug(context.Context, Veth) error                     { return errOther }
func (*Host) Unplug(context.Context, ...string) error              { return errOther }
func (*Host) Cut(context.Context, string, ...netip.Addr) error     { return errOther }
func (*Host) Plugged(context.Context, Veth) error                  { return errOther }
func (*Host) DeviceTo(context.Context, netip.Addr) (string, error) { return "", errOther }
func (*Host) Watch(context.Context) (<-chan Event, error)          { return nil, errOther }

func (*Host) Snapshot(context.Context, []string) (*Snapshot, error) { return nil, errOther }

func (*Host) Sent(context.Context, string) (map[string]time.Duration, error) { return nil, errOther }

func (*Host) Neighbours(context.Context, string) ([]Neighbour, error) { return nil, errOther }

func (*Host) OpenTUN(string, int, bool) ([]*os.File, Offload, error) { return nil, Offload{}, errOther }

func (*Host) Underlay(context.Context, []netip.Prefix) ([]Interface, error) { return nil, errOther }

func (*Host) Link(context.Context, string) (Link, bool, error) { return Link{}, false, errOther }
func ProbeVeth(context.Context) error                          { return errOther }
func ProbeVXLAN(context.Context) error                         { return errOther }
func ProbeTUN(context.Context) error                           { return errOther }
func ProbeFilter(context.Context) error                        { return errOther }
func ProbeIPv6(context.Context) error                          { return errOther }
