package router

import (
	"testing"
	"time"
)

// A link that sleeps is no reason to leave a transport, and none to prefer one that is known to work less.
func TestSleepingLinksKeepTheirTransport(t *testing.T) {
	cands := []candidate{
		{option: option{Driver: Driver{Name: "wireguard", Sealed: true}}},
		{option: option{Driver: Driver{Name: "sleeve", Sealed: true}}},
	}
	now := time.Unix(1_800_000_000, 0)
	up, asleep, down := Link{Up: true}, Link{Asleep: true}, Link{Reason: "no answer"}
	for name, c := range map[string]struct {
		was   string
		links map[string]Link
		want  string
	}{
		"it sleeps where it is":             {"sleeve", map[string]Link{"wireguard": down, "sleeve": asleep}, "sleeve"},
		"the better one is down":            {"wireguard", map[string]Link{"wireguard": down, "sleeve": asleep}, "sleeve"},
		"the better one works":              {"wireguard", map[string]Link{"wireguard": up, "sleeve": asleep}, "wireguard"},
		"the better one works again":        {"sleeve", map[string]Link{"wireguard": up, "sleeve": asleep}, "wireguard"},
		"it woke, and there is no answer":   {"sleeve", map[string]Link{"wireguard": up, "sleeve": down}, "wireguard"},
		"nobody answers, and nothing moves": {"sleeve", map[string]Link{"wireguard": down, "sleeve": down}, "sleeve"},
	} {
		was := Choice{Transport: c.was, Since: now.Add(-time.Hour)}
		if got := choose(cands, nil, c.links, was, now); got.Transport != c.want {
			t.Errorf("%s: %s, want %s", name, got.Transport, c.want)
		}
	}
}
