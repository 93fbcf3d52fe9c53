package control_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weft/prog/control"
)

// The documents that scripts depend on, as promised. Fields may be added; none may go.
func promised() map[string]struct {
	text string
	into any
} {
	return map[string]struct {
		text string
		into any
	}{
		"status": {`{"version":1,
 "node":{"id":"","name":"","state":"ready","reason":"","underlay":[],"overlay":["10.32.0.1","fd00::1"],"nat":"none","relay":true,"voter":true,"issuer":false,"uptime_s":0,"build":""},
 "cluster":{"id":"","pools":[],"encryption":"required","members":3,"alive":3},
 "transports":[{"name":"wireguard","available":false,"reason":""}],
 "peers":[{"id":"","name":"","state":"alive","blocks":[],"transport":"","encrypted":true,"path":"direct","via":[],"endpoint":"","reason":"","mtu":1420,"rtt_ms":0.4,"loss":0.0,"last_seen_s":0.2,"key_age_s":35,"rx_bytes":0,"tx_bytes":0}],
 "ipam":{"state":"ready","reason":"","blocks":[],"used":0,"free":0,"unreachable":0}}`, new(control.Status)},
		"ip list":    {`{"version":1,"claims":[{"address":"10.32.0.2","container":"","ifname":"","netns":"","pod":"","created":""}]}`, new(control.Claims)},
		"ip ring":    {`{"version":1,"blocks":[{"prefix":"10.32.0.0/12","owner":"","owner_name":"","view":0,"seq":0}]}`, new(control.Ring)},
		"token list": {`{"version":1,"tokens":[{"id":"","expires":"","uses":0,"used":0,"ephemeral":false,"revoked":false}]}`, new(control.Tokens)},
	}
}

func TestPromisedDocuments(t *testing.T) {
	for name, c := range promised() {
		t.Run(name, func(t *testing.T) {
			d := json.NewDecoder(strings.NewReader(c.text))
			d.DisallowUnknownFields()
			if err := d.Decode(c.into); err != nil {
				t.Fatal(err)
			}
			var want, got any
			if err := json.Unmarshal([]byte(c.text), &want); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(asJSON(t, c.into)), &got); err != nil {
				t.Fatal(err)
			}
			if missing := lacks(want, got, ""); len(missing) > 0 {
				t.Errorf("gone or changed: %s", strings.Join(missing, ", "))
			}
		})
	}
}

// lacks lists what of want is not in got.
func lacks(want, got any, at string) []string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return []string{at}
		}
		var all []string
		for _, k := range slices.Sorted(maps.Keys(w)) {
			if _, ok := g[k]; !ok {
				all = append(all, at+"."+k)
				continue
			}
			all = append(all, lacks(w[k], g[k], at+"."+k)...)
		}
		return all
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return []string{at}
		}
		var all []string
		for i := range w {
			all = append(all, lacks(w[i], g[i], fmt.Sprintf("%s[%d]", at, i))...)
		}
		return all
	}
	if !reflect.DeepEqual(want, got) {
		return []string{fmt.Sprintf("%s: %v, not %v", at, got, want)}
	}
	return nil
}

// replies are all documents that a daemon sends.
func replies() []any {
	return []any{
		new(control.Status), new(control.InitReply), new(control.JoinReply), new(control.LeaveReply),
		new(control.TokenReply), new(control.Tokens), new(control.AttachReply), new(control.DetachReply), new(control.Peers),
		new(control.PeerDetail), new(control.Issuers), new(control.Claims), new(control.Ring), new(control.PingReply),
		new(control.Doctor), new(control.Report), new(control.Graph),
	}
}

func TestEmptyDocumentsHoldNoNull(t *testing.T) {
	for _, v := range replies() {
		if text := asJSON(t, v); strings.Contains(text, "null") {
			t.Errorf("%T: %s", v, text)
		}
	}
}

func TestClientsIgnoreNewFields(t *testing.T) {
	var st control.Status
	if err := json.Unmarshal([]byte(`{"version":1,"weather":"fine","node":{"name":"alpha","mood":[1]}}`), &st); err != nil || st.Node.Name != "alpha" {
		t.Errorf("%+v, %v", st, err)
	}
}

// FuzzReply feeds each document arbitrary JSON: what is understood survives being written and read again.
func FuzzReply(f *testing.F) {
	for _, c := range promised() {
		f.Add([]byte(c.text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range replies() {
			if json.Unmarshal(b, v) != nil {
				continue
			}
			first, err := json.Marshal(v)
			if err != nil {
				t.Fatalf("%T was read but cannot be written: %v", v, err)
			}
			again := reflect.New(reflect.TypeOf(v).Elem()).Interface()
			if err := json.Unmarshal(first, again); err != nil {
				t.Fatalf("%T cannot read what it wrote: %v\n%s", v, err, first)
			}
			second, err := json.Marshal(again)
			if err != nil || !bytes.Equal(first, second) {
				t.Fatalf("%T changes when it is copied: %s", v, cmp.Diff(string(first), string(second)))
			}
		}
	})
}
