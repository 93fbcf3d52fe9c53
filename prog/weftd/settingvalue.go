package weftd

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Values of settings, as they are written and shown.

// ParseAdvertise reads an address with a port or without; port 0 stands for that of Config.Listen.
func ParseAdvertise(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		a, err := netip.ParseAddr(strings.Trim(s, "[]"))
		if err != nil {
			return netip.AddrPort{}, want(s, "an address such as 192.0.2.7 or 192.0.2.7:6783")
		}
		ap = netip.AddrPortFrom(a, 0)
	}
	if a := ap.Addr(); a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Zone() != "" {
		return netip.AddrPort{}, want(s, "an address that other machines can reach")
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

func parseListen(s string) (netip.AddrPort, error) {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		s = "[::]:" + port
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return netip.AddrPort{}, want(s, "ADDRESS:PORT or :PORT")
	}
	return ap, nil
}

func showAddr(ap netip.AddrPort) string {
	switch {
	case !ap.IsValid():
		return ""
	case ap.Addr() == netip.IPv6Unspecified():
		return ":" + strconv.Itoa(int(ap.Port()))
	}
	return ap.String()
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, want(s, "a network such as 10.32.0.0/12")
	}
	if p != p.Masked() {
		return netip.Prefix{}, want(s, p.Masked().String()+", without host bits")
	}
	return p, nil
}

func parsePrefixes(s string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, f := range fields(s) {
		p, err := parsePrefix(f)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// parseSpan reads a duration that may be given in days; never is negative.
func parseSpan(v string) (time.Duration, error) {
	if v == "never" {
		return -1, nil
	}
	d, err := time.ParseDuration(v)
	if days, ok := strings.CutSuffix(v, "d"); ok {
		var n int
		if n, err = strconv.Atoi(days); n > 0 && n < 36500 {
			d = time.Duration(n) * 24 * time.Hour
		}
	}
	if err != nil || d < minRemoveAfter {
		return 0, want(v, "a time of at least "+minRemoveAfter.String()+", such as 30d or 12h, or never")
	}
	return d, nil
}

// minRemoveAfter is longer than a member is silent when it is started anew.
const minRemoveAfter = 10 * time.Second

func setPath(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if !filepath.IsAbs(v) {
			return want(v, "an absolute path")
		}
		*field(c) = filepath.Clean(v)
		return nil
	}
}

func setSwitch(field func(*Config) *bool) func(*Config, string) error {
	return func(c *Config, v string) error {
		if v != "true" && v != "false" {
			return want(v, "true or false")
		}
		*field(c) = v == "true"
		return nil
	}
}

// showSwitch leaves out what is off.
func showSwitch(on bool) string {
	if on {
		return "true"
	}
	return ""
}

func setPrefixes(field func(*Config) *[]netip.Prefix) func(*Config, string) error {
	return func(c *Config, v string) (err error) {
		*field(c), err = parsePrefixes(v)
		return err
	}
}

func joinPrefixes(prefixes []netip.Prefix) string {
	var all []string
	for _, p := range prefixes {
		all = append(all, p.String())
	}
	return strings.Join(all, ",")
}

// fields splits at commas; an empty list has no fields.
func fields(s string) []string {
	var all []string
	for f := range strings.SplitSeq(s, ",") {
		if f = strings.TrimSpace(f); f != "" {
			all = append(all, f)
		}
	}
	return all
}

func want(got, what string) error { return fmt.Errorf("want %s, got %q", what, got) }

func badValue(key, got, why string) error { return fmt.Errorf("%s: %s, got %q", key, why, got) }
