package wireguard

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The text is that of WireGuard's cross-platform configuration protocol: lines of key=value, keys and values in hexadecimal,
// a peer's lines behind its public_key.

// errText says that a device's answer was not understood.
var errText = errors.New("not the text of a WireGuard device")

// appendText writes a configuration.
func appendText(dst []byte, c Config) []byte {
	line := func(key, value string) {
		dst = append(dst, key...)
		dst = append(dst, '=')
		dst = append(dst, value...)
		dst = append(dst, '\n')
	}
	if c.Private != nil {
		line("private_key", hex.EncodeToString(c.Private[:]))
	}
	if c.Port != nil {
		line("listen_port", strconv.Itoa(int(*c.Port)))
	}
	for _, p := range c.Peers {
		line("public_key", hex.EncodeToString(p.Public[:]))
		if p.Remove {
			line("remove", "true")
			continue
		}
		if p.Preshared != nil {
			line("preshared_key", hex.EncodeToString(p.Preshared[:]))
		}
		if p.Endpoint.IsValid() {
			line("endpoint", p.Endpoint.String())
		}
		if p.Keepalive != nil {
			line("persistent_keepalive_interval", strconv.Itoa(int(p.Keepalive.Seconds())))
		}
		for _, a := range p.Allowed {
			line("allowed_ip", a.String())
		}
	}
	return dst
}

// parseText reads what a device tells of itself. Keys that are not known are skipped.
func parseText(text string) (State, error) {
	s := State{Peers: make(map[Key]Peer)}
	var public Key
	var p *Peer
	end := func() {
		if p != nil {
			s.Peers[public] = *p
		}
	}
	var seconds int64
	for l := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSuffix(l, "\n"), "=")
		if !ok && name == "" {
			continue
		}
		if !ok {
			return State{}, fmt.Errorf("%w: a line without a value", errText)
		}
		var err error
		switch {
		case name == "public_key":
			end()
			p, seconds = new(Peer), 0
			public, err = parseHex(value)
		case name == "private_key":
			s.Private, err = parseHex(value)
		case name == "listen_port":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 16)
			s.Port = uint16(n)
		case p != nil:
			err = p.parse(name, value, &seconds)
		}
		if err != nil {
			return State{}, fmt.Errorf("%w: %s: %w", errText, name, err)
		}
	}
	end()
	return s, nil
}

// parse reads one line of a peer. seconds is the first half of the time of its handshake.
func (p *Peer) parse(name, value string, seconds *int64) (err error) {
	switch name {
	case "preshared_key":
		p.Preshared, err = parseHex(value)
	case "endpoint":
		p.Endpoint, err = netip.ParseAddrPort(value)
	case "persistent_keepalive_interval":
		var n uint64
		n, err = strconv.ParseUint(value, 10, 16)
		p.Keepalive = time.Duration(n) * time.Second
	case "last_handshake_time_sec":
		*seconds, err = strconv.ParseInt(value, 10, 64)
	case "last_handshake_time_nsec":
		var n int64
		if n, err = strconv.ParseInt(value, 10, 64); *seconds != 0 || n != 0 {
			p.Handshake = time.Unix(*seconds, n)
		}
	case "rx_bytes":
		p.Received, err = strconv.ParseUint(value, 10, 64)
	case "tx_bytes":
		p.Sent, err = strconv.ParseUint(value, 10, 64)
	case "allowed_ip":
		var a netip.Prefix
		if a, err = netip.ParsePrefix(value); err == nil {
			p.Allowed = append(p.Allowed, a)
		}
	}
	return err
}

func parseHex(value string) (Key, error) {
	b, err := hex.DecodeString(value)
	if err != nil || len(b) != KeySize {
		return Key{}, errors.New("not a key") // what stands there may be one, nearly
	}
	return Key(b), nil
}
