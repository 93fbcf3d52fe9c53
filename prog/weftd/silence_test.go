package weftd

import (
	"flag"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/mesh/peer"
	"weft/test/corpus"
)

var updateCorpus = flag.Bool("update-corpus", false, "write testdata/fuzz anew")

func silentMembers(n int) []peer.Info {
	var all []peer.Info
	for i := range n {
		all = append(all, peer.Info{ID: peer.ID{byte(i + 1)}, Ephemeral: i%2 == 1})
	}
	return all
}

func TestSilenceAddsUpOverRuns(t *testing.T) {
	members := silentMembers(2)
	month := func(m peer.Info) time.Duration {
		if m.Ephemeral {
			return 10 * time.Minute
		}
		return 30 * 24 * time.Hour
	}
	nobody := func(peer.Info) bool { return false }
	s := silences{}
	for range 10 {
		s.listen(time.Minute, members, nobody)
	}
	if due := s.due(members, month); len(due) != 1 || due[0].ID != members[1].ID {
		t.Fatalf("after 10 min: %v", due)
	}
	// Three runs of ten days each, with a restart between: what was written down counts.
	s = silences{}
	for run := range 3 {
		for range 10 * 24 {
			if due := s.due(members[:1], month); len(due) > 0 {
				t.Fatalf("due after %v", s[members[0].ID])
			}
			s.listen(time.Hour, members[:1], nobody)
		}
		var err error
		if run < 2 {
			if s, err = parseSilences(s.append(nil)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if due := s.due(members[:1], month); len(due) != 1 {
		t.Errorf("not due after %v", s[members[0].ID])
	}
	// Right after a start nobody is due, whatever was written down: others get time to be heard.
	again, err := parseSilences(s.append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if due := again.due(members[:1], month); len(due) > 0 {
		t.Error("due at the start")
	}
	again.listen(silenceFresh, members[:1], nobody)
	if due := again.due(members[:1], month); len(due) != 1 {
		t.Error("not due after a while")
	}
}

// One sign of life begins the count anew, and who is no member is forgotten: no sequence of looks makes somebody due who
// was heard less than the limit ago.
func TestNobodyIsDueWhoWasHeard(t *testing.T) {
	members := silentMembers(4)
	limit := func(peer.Info) time.Duration { return time.Hour }
	rapid.Check(t, func(t *rapid.T) {
		s := silences{}
		since := map[peer.ID]time.Duration{} // as it really was
		for range rapid.IntRange(1, 60).Draw(t, "looks") {
			d := time.Duration(rapid.IntRange(1, 30).Draw(t, "minutes")) * time.Minute
			heard := peer.Set{}
			for _, m := range members {
				if rapid.IntRange(0, 3).Draw(t, "heard") == 0 {
					heard.Add(m.ID)
				}
			}
			present := members[:rapid.IntRange(2, 4).Draw(t, "members")]
			s.listen(d, present, func(m peer.Info) bool { return heard.Has(m.ID) })
			for _, m := range present {
				if since[m.ID] += d; heard.Has(m.ID) {
					since[m.ID] = 0
				}
			}
			for _, m := range members[len(present):] {
				since[m.ID] = 0
			}
			if rapid.IntRange(0, 5).Draw(t, "restart") == 0 {
				var err error
				if s, err = parseSilences(s.append(nil)); err != nil {
					t.Fatal(err)
				}
			}
			for _, m := range s.due(members, limit) {
				if since[m.ID] < time.Hour {
					t.Fatalf("%s is due after %v", m.ID, since[m.ID])
				}
			}
		}
	})
}

func TestTheLongestSilenceGoesFirst(t *testing.T) {
	members := silentMembers(3)
	s := silences{
		members[0].ID: {2 * time.Hour, time.Hour}, members[1].ID: {4 * time.Hour, time.Hour}, members[2].ID: {time.Minute, time.Minute},
	}
	due := s.due(members, func(peer.Info) time.Duration { return time.Hour })
	if len(due) != 2 || due[0].ID != members[1].ID || due[1].ID != members[0].ID {
		t.Errorf("%v", due)
	}
}

func FuzzParseSilences(f *testing.F) {
	corpus.Add(f, *updateCorpus, "three", silences{{1}: {total: time.Hour}, {2}: {total: time.Second}, {3}: {total: 1 << 62}}.append(nil))
	corpus.Add(f, *updateCorpus, "none", silences{}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSilences(b)
		if err != nil {
			return
		}
		again, err := parseSilences(s.append(nil))
		if err != nil || !maps.Equal(s, again) {
			t.Fatalf("%v became %v: %v", s, again, err)
		}
	})
}

func FuzzParseNodes(f *testing.F) {
	corpus.Add(f, *updateCorpus, "two", appendNodes([]peer.ID{{1}, {2}}))
	corpus.Add(f, *updateCorpus, "none", appendNodes(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		ids, err := parseNodes(b)
		if err != nil {
			return
		}
		again, err := parseNodes(appendNodes(ids))
		if err != nil || !slices.Equal(ids, again) {
			t.Fatalf("%v became %v: %v", ids, again, err)
		}
	})
}
