package join

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
	"weft/test/corpus"
)

var update = flag.Bool("update", false, "write testdata/fuzz anew")

// samples are one of each message, all from fixed keys.
type samples struct {
	cluster     *identity.Cluster
	delegation  *identity.Delegation
	invitation  *identity.Invitation
	application *identity.Application
	certificate *identity.Certificate
}

func newSamples() samples {
	fixed := func(n byte) identity.Key { return must(identity.ParseKey(bytes.Repeat([]byte{n}, identity.KeySize))) }
	root, issuer, node, tok := fixed(1), fixed(2), fixed(3), fixed(4)
	day := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	d := must(identity.Delegate(root, issuer.Public(), day))
	by := identity.Issuer{Key: issuer, Delegation: d}
	inv := must(by.Invite(tok.Public(), identity.Terms{NotAfter: day, Uses: 1}))
	a := must(identity.Apply(identity.FingerprintOf(root.Public()), node, tok, "n4"))
	return samples{
		must(identity.NewCluster(root, identity.ClusterSpec{Founder: issuer.ID()})), d, inv, a, must(by.Certify(a, inv, 3, day)),
	}
}

// fuzzMessage checks that what a decoder accepts is encoded to something that it reads as the same message.
func fuzzMessage[T interface{ append([]byte) []byte }](f *testing.F, parse func([]byte) (T, error), seeds ...T) {
	f.Helper()
	for i, s := range seeds {
		corpus.Add(f, *update, fmt.Sprint("sample", i), s.append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		again, err := parse(m.append(nil))
		if err != nil {
			t.Fatalf("cannot read what was written: %v", err)
		}
		if !bytes.Equal(again.append(nil), m.append(nil)) {
			t.Fatal("the message changed")
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	s := newSamples()
	fuzzMessage(f, parseRequest, &request{s.application, make([]byte, 64), make([]byte, 64), "test"})
}

func FuzzParseWelcomed(f *testing.F) {
	s := newSamples()
	fuzzMessage(f, parseWelcomed, &welcomed{s.cluster, s.certificate, netip.MustParseAddrPort("10.0.0.7:1"), "test"})
}

func FuzzParseForward(f *testing.F) {
	s := newSamples()
	fuzzMessage(f, parseForward, &forward{s.application, s.invitation})
}

func FuzzParseIssued(f *testing.F) {
	s := newSamples()
	fuzzMessage(f, parseIssued, &issued{certificate: s.certificate}, &issued{s.certificate, [][]byte{s.delegation.Raw()}})
}

func FuzzParseAsk(f *testing.F) {
	s := newSamples()
	fuzzMessage(f, parseAsk, &ask{forward{s.application, s.invitation}, s.delegation, attempt{1}, []peer.ID{{1}, {2}}})
}

func FuzzParsePromised(f *testing.F) {
	s := newSamples()
	fuzzMessage(f, parsePromised, &promised{joinSeq: 3}, &promised{
		4, s.certificate,
		[][]byte{s.certificate.Raw()},
		[]peer.Voter{{ID: peer.ID{1}, JoinSeq: 2}},
	})
}

func FuzzParseRelease(f *testing.F) {
	fuzzMessage(f, parseRelease, &release{peer.ID{1}, attempt{2}})
}

func FuzzParseError(f *testing.F) {
	fuzzMessage(f, parseError, errUnknown("n1"), errNoQuorum(1, 2, []string{"n1"}))
}

func FuzzParseItems(f *testing.F) {
	body, _ := appendItems(nil, [][]byte{{1, 2}, {3}})
	corpus.Add(f, *update, "sample", body)
	f.Fuzz(func(t *testing.T, b []byte) {
		items, err := parseItems(b)
		if err != nil {
			return
		}
		body, rest := appendItems(nil, items)
		again, err := parseItems(body)
		if err != nil || len(rest)+len(again) != len(items) {
			t.Fatalf("%d items became %d and %d: %v", len(items), len(again), len(rest), err)
		}
	})
}

func FuzzParsePromises(f *testing.F) {
	f.Add([]byte{})
	corpus.Add(f, *update, "sample", appendPromises(nil, map[peer.ID]promise{{1}: {joinSeq: 1, ephemeral: true, made: time.Unix(5, 6)}, {2}: {}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		promises, err := parsePromises(b)
		if err != nil {
			return
		}
		again, err := parsePromises(appendPromises(nil, promises))
		if err != nil || !reflect.DeepEqual(again, promises) {
			t.Fatalf("%v became %v: %v", promises, again, err)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	var b bytes.Buffer
	if err := writeFrame(&b, frameWelcome, []byte("body")); err != nil {
		f.Fatal(err)
	}
	corpus.Add(f, *update, "sample", b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, body, err := readFrame(bytes.NewReader(b), 1<<16)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := writeFrame(&again, kind, body); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Bytes(), b[:again.Len()]) {
			t.Fatal("the frame changed")
		}
	})
}

func TestLedgersSurviveTheDisk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		promises := map[peer.ID]promise{}
		for i := range rapid.IntRange(0, 20).Draw(t, "n") {
			promises[peer.ID{byte(i)}] = promise{
				invitation: identity.ItemID{rapid.Byte().Draw(t, "invitation")},
				issuer:     peer.ID{rapid.Byte().Draw(t, "issuer")},
				attempt:    attempt{rapid.Byte().Draw(t, "attempt")},
				joinSeq:    rapid.Uint64().Draw(t, "seq"),
				ephemeral:  rapid.Bool().Draw(t, "ephemeral"),
				made:       time.Unix(0, rapid.Int64Range(0, 1<<62).Draw(t, "made")),
			}
		}
		got, err := parsePromises(appendPromises(nil, promises))
		if err != nil || !reflect.DeepEqual(got, promises) {
			t.Fatalf("%v, %v", got, err)
		}
	})
	if _, err := parsePromises([]byte{0x20}); err == nil {
		t.Error("a ledger of a newer weft was read")
	}
}

func TestErrorsCannotPlayWithTheTerminal(t *testing.T) {
	e, err := parseError(refuse("co\x1bde", "a\x1b[2Jb\u202ec", strings.Repeat("é", 2000), "x\ny").append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if e.Code != "code" || e.Sentence != "a[2Jbc" || len(e.Cause) > maxText || e.Hint != "xy" {
		t.Errorf("%q", e)
	}
}

func TestMessagesOfANewerMinorVersionAreRead(t *testing.T) {
	s := newSamples()
	newer := func(b []byte) []byte {
		b[0] = byte(tlv.V(version.Major(), version.Minor()+1))
		return tlv.Append(b, 999, []byte("something new"))
	}
	for name, err := range map[string]error{
		"request":  failed(parseRequest(newer((&request{s.application, nil, nil, ""}).append(nil)))),
		"welcomed": failed(parseWelcomed(newer((&welcomed{cluster: s.cluster, certificate: s.certificate}).append(nil)))),
		"forward":  failed(parseForward(newer((&forward{s.application, s.invitation}).append(nil)))),
		"issued":   failed(parseIssued(newer((&issued{certificate: s.certificate}).append(nil)))),
		"ask":      failed(parseAsk(newer((&ask{forward: forward{s.application, s.invitation}, delegation: s.delegation}).append(nil)))),
		"promised": failed(parsePromised(newer((&promised{}).append(nil)))),
		"release":  failed(parseRelease(newer((&release{}).append(nil)))),
		"error":    failed(parseError(newer(errUnknown("n1").append(nil)))),
		"promises": failed(parsePromises(newer(appendPromises(nil, map[peer.ID]promise{{1}: {}})))),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func failed[T any](_ T, err error) error { return err }
