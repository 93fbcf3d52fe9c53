package noise

import (
	"bytes"
	"crypto/ecdh"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPublishedVector plays the vector of the cacophony test suite for this protocol, including the first transport
// message each way.
func TestPublishedVector(t *testing.T) {
	v := func(s string) []byte { return unhex(t, s) }
	prologue := v("6e6f74736563726574")
	psk := v("2176657279736563726574766572797365637265747665727973656372657421")
	ik, err := NewKey([32]byte(v("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")))
	if err != nil {
		t.Fatal(err)
	}
	rk, err := NewKey([32]byte(v("0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20")))
	if err != nil {
		t.Fatal(err)
	}
	rpub := rk.Public()
	i, err := newHandshake(Local{Key: ik, random: bytes.NewReader(
		v("202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"))}, rpub[:], prologue)
	if err != nil {
		t.Fatal(err)
	}
	r, err := newHandshake(Local{Key: rk, random: bytes.NewReader(
		v("4142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f60"))}, nil, prologue)
	if err != nil {
		t.Fatal(err)
	}
	m1, _, _, err := i.WriteMessage(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := v("358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254d06f15f78ad0914d9715147bb5a5004b" +
		"27345a838bab4aa8bc5f144afc2cf4ccb88f9ea1ebd99e94b76e50af7eee0e59549f4f47de925ee65c9dee48f8990082"); !bytes.Equal(m1, want) {
		t.Errorf("message 1 is %x", m1)
	}
	if _, _, _, err := r.ReadMessage(nil, m1); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.SetPresharedKey(psk), i.SetPresharedKey(psk)); err != nil {
		t.Fatal(err)
	}
	m2, rc1, rc2, err := r.WriteMessage(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := v("64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d484665db536cf97f15c6ece2431fc1c0057b4"); !bytes.Equal(m2, want) {
		t.Errorf("message 2 is %x", m2)
	}
	_, ic1, ic2, err := i.ReadMessage(nil, m2)
	if err != nil {
		t.Fatal(err)
	}
	if ic1.UnsafeKey() != rc1.UnsafeKey() || ic2.UnsafeKey() != rc2.UnsafeKey() {
		t.Fatal("the two ends have different keys")
	}
	for _, m := range []struct {
		key            [32]byte
		payload, wants string
	}{
		{ic1.UnsafeKey(), "79656c6c6f777375626d6172696e65", "6013ea114b4c4884afb82bf029f72f924bd8a32c487a15a1cef4855ba234be"},
		{ic2.UnsafeKey(), "7375626d6172696e6579656c6c6f77", "8a2e7119635e41a35b7e64e0adac5483b66b1a9827895124ea07d58440b654"},
	} {
		a, _ := chacha20poly1305.New(m.key[:])
		if got := a.Seal(nil, make([]byte, 12), v(m.payload), nil); !bytes.Equal(got, v(m.wants)) {
			t.Errorf("transport message is %x", got)
		}
	}
}

// end is one node of a test.
type end struct {
	Local
	public  [32]byte
	private *ecdh.PrivateKey
}

func newEnd(t testing.TB) end {
	t.Helper()
	private, public, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return end{Local: Local{Key: k, Cluster: [32]byte{1, 2, 3}}, public: public, private: k.private}
}

var (
	secretA, secretB = [32]byte{'a'}, [32]byte{'b'}
	idA, idB         = ID{'A'}, ID{'B'}
	testOffer        = Offer{Counter: 77, Epoch: 3, Ciphers: []uint8{2, 1}, PSKs: []ID{idA, idB}, MTU: 1420}
)

func secrets(id ID) ([32]byte, bool) {
	switch id {
	case idA:
		return secretA, true
	case idB:
		return secretB, true
	}
	return [32]byte{}, false
}

// take answers with a given secret and cipher.
func take(id ID, cipher uint8) Decide {
	return func([32]byte, Offer) (Answer, [32]byte, error) {
		s, ok := secrets(id)
		if !ok {
			return Answer{}, s, ErrPSK
		}
		return Answer{Index: 0xabcdef, Cipher: cipher, PSK: id, Epoch: 9, MTU: 1380}, s, nil
	}
}

func TestHandshake(t *testing.T) {
	i, r := newEnd(t), newEnd(t)
	for name, id := range map[string]ID{"newest secret": idA, "the one before": idB} {
		t.Run(name, func(t *testing.T) {
			p, m1, err := Initiate(i.Local, r.public, 0x123456, testOffer)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Key.Check(m1); err != nil {
				t.Fatal(err)
			}
			var got Offer
			m2, rk, err := Respond(r.Local, m1, func(remote [32]byte, o Offer) (Answer, [32]byte, error) {
				if remote != i.public {
					t.Errorf("initiator is %x", remote)
				}
				got = o
				return take(id, 1)(remote, o)
			})
			if err != nil {
				t.Fatal(err)
			}
			if got.Counter != 77 || got.Epoch != 3 || got.MTU != 1420 || !slices.Equal(got.PSKs, testOffer.PSKs) ||
				!slices.Equal(got.Ciphers, testOffer.Ciphers) {
				t.Errorf("offer arrived as %+v", got)
			}
			if len(m2) > len(m1) {
				t.Errorf("response of %d bytes to %d", len(m2), len(m1))
			}
			if err := i.Key.Check(m2); err != nil {
				t.Fatal(err)
			}
			if Index(m2) != 0x123456 {
				t.Errorf("index came back as %x", Index(m2))
			}
			a, ik, err := p.Finish(m2, secrets)
			if err != nil {
				t.Fatal(err)
			}
			if a != (Answer{Index: 0xabcdef, Cipher: 1, PSK: id, Epoch: 9, MTU: 1380}) {
				t.Errorf("answer arrived as %+v", a)
			}
			if ik.Send != rk.Receive || ik.Receive != rk.Send || ik.Send == ik.Receive {
				t.Error("keys do not match")
			}
		})
	}
}

// TestAgainstReference lets each end talk to the specification as written down in reference_test.go.
func TestAgainstReference(t *testing.T) {
	i, r := newEnd(t), newEnd(t)
	eph := newEnd(t).private
	prologue := func(header []byte) []byte {
		return append(append([]byte("weft sleeve v1"), i.Cluster[:]...), header...)
	}

	t.Run("as initiator", func(t *testing.T) {
		p, m1, err := Initiate(i.Local, r.public, 5, testOffer)
		if err != nil {
			t.Fatal(err)
		}
		ref := startReference(t, false, r.private, r.public[:], prologue(m1[:4]))
		ref.e, ref.psk = eph, secretB
		o, err := parseOffer(ref.readMessage1(m1[4 : len(m1)-32]))
		if err != nil || o.Counter != 77 {
			t.Fatalf("offer %+v, %v", o, err)
		}
		m2 := append([]byte{TypeResponse, 0, 0, 5, 1}, ref.writeMessage2((&Answer{Index: 1, Cipher: 2, PSK: idB}).append(nil))...)
		_, keys, err := p.Finish(appendMACs(m2, i.public), secrets)
		if err != nil {
			t.Fatal(err)
		}
		want := ref.split()
		if keys.Send != want.Receive || keys.Receive != want.Send {
			t.Error("keys differ")
		}
	})
	t.Run("as responder", func(t *testing.T) {
		header := []byte{TypeInitiation, 0, 0, 6}
		ref := startReference(t, true, i.private, r.public[:], prologue(header))
		ref.e, ref.psk = eph, secretA
		m1 := append(slices.Clone(header), ref.writeMessage1(pad(testOffer.append(nil), MinInitiation-overheadInitiation))...)
		m2, keys, err := Respond(r.Local, appendMACs(m1, r.public), take(idA, 2))
		if err != nil {
			t.Fatal(err)
		}
		a, err := parseAnswer(ref.readMessage2(m2[5 : len(m2)-32]))
		if err != nil || a.Cipher != 2 || a.PSK != idA {
			t.Fatalf("answer %+v, %v", a, err)
		}
		want := ref.split()
		if keys.Send != want.Receive || keys.Receive != want.Send {
			t.Error("keys differ")
		}
	})
}

func TestEveryFlippedBitIsRefused(t *testing.T) {
	i, r := newEnd(t), newEnd(t)
	p, m1, err := Initiate(i.Local, r.public, 1, testOffer)
	if err != nil {
		t.Fatal(err)
	}
	m2, _, err := Respond(r.Local, m1, take(idA, 1))
	if err != nil {
		t.Fatal(err)
	}
	for bit := 0; bit < (len(m1)-macSize)*8; bit += 5 { // mac2 is not in use
		b := slices.Clone(m1)
		b[bit/8] ^= 1 << (bit % 8)
		if r.Key.Check(b) == nil {
			t.Fatalf("bit %d of message 1 passes mac1", bit)
		}
		if bit < (len(m1)-macs)*8 {
			if _, _, err := Respond(r.Local, b, take(idA, 1)); err == nil {
				t.Fatalf("bit %d of message 1 is not authenticated", bit)
			}
		}
	}
	for bit := 0; bit < (len(m2)-macs)*8; bit += 5 {
		if bit/8 >= 1 && bit/8 < initiationHeader {
			continue // the index only finds the handshake
		}
		b := slices.Clone(m2)
		b[bit/8] ^= 1 << (bit % 8)
		if _, _, err := p.Finish(b, secrets); err == nil {
			t.Fatalf("bit %d of message 2 is not authenticated", bit)
		}
	}
	// A point of low order fails in the middle of the mixing.
	b := slices.Clone(m2)
	clear(b[responseHeader : responseHeader+32])
	if _, _, err := p.Finish(b, secrets); !errors.Is(err, ErrAuth) {
		t.Errorf("low order point: %v", err)
	}
	if _, _, err := p.Finish(m2, secrets); err != nil {
		t.Errorf("after all these forgeries the true response is refused: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	i, r, other := newEnd(t), newEnd(t), newEnd(t)
	start := func() (*Pending, []byte) {
		p, m1, err := Initiate(i.Local, r.public, 1, testOffer)
		if err != nil {
			t.Fatal(err)
		}
		return p, m1
	}
	t.Run("another cluster", func(t *testing.T) {
		_, m1 := start()
		l := r.Local
		l.Cluster[0]++
		if _, _, err := Respond(l, m1, take(idA, 1)); !errors.Is(err, ErrAuth) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another node", func(t *testing.T) {
		_, m1 := start()
		if err := other.Key.Check(m1); !errors.Is(err, ErrMAC1) {
			t.Errorf("got %v", err)
		}
		if _, _, err := Respond(other.Local, m1, take(idA, 1)); !errors.Is(err, ErrAuth) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another secret under the same id", func(t *testing.T) {
		p, m1 := start()
		m2, _, err := Respond(r.Local, m1, func([32]byte, Offer) (Answer, [32]byte, error) {
			return Answer{Cipher: 1, PSK: idA}, [32]byte{'x'}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := p.Finish(m2, secrets); !errors.Is(err, ErrAuth) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a secret removed while the handshake was under way", func(t *testing.T) {
		p, m1 := start()
		m2, _, err := Respond(r.Local, m1, take(idA, 1))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := p.Finish(m2, func(ID) ([32]byte, bool) { return [32]byte{}, false }); !errors.Is(err, ErrPSK) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a cipher that was not offered", func(t *testing.T) {
		_, m1 := start()
		if _, _, err := Respond(r.Local, m1, take(idA, 7)); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("no secret", func(t *testing.T) {
		o := testOffer
		o.PSKs = nil
		if _, _, err := Initiate(i.Local, r.public, 1, o); !errors.Is(err, ErrPSK) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("silence when asked for", func(t *testing.T) {
		_, m1 := start()
		silence := errors.New("stranger")
		m2, _, err := Respond(r.Local, m1, func([32]byte, Offer) (Answer, [32]byte, error) { return Answer{}, secretA, silence })
		if m2 != nil || !errors.Is(err, silence) {
			t.Errorf("got %x, %v", m2, err)
		}
	})
	t.Run("reflected", func(t *testing.T) {
		p, m1 := start()
		if err := i.Key.Check(m1); !errors.Is(err, ErrMAC1) {
			t.Errorf("own initiation: %v", err)
		}
		if _, _, err := p.Finish(m1, secrets); !errors.Is(err, ErrMessage) {
			t.Errorf("own initiation as response: %v", err)
		}
	})
}

func TestUnknownFieldsAreIgnoredAndNewMajorsRefused(t *testing.T) {
	b := testOffer.append(nil)
	b[0] |= 1 // minor
	b = append(b, 0, 99, 0, 0, 0, 1, 42)
	if o, err := parseOffer(b); err != nil || o.Counter != 77 {
		t.Errorf("got %+v, %v", o, err)
	}
	b[0] += 0x10
	if _, err := parseOffer(b); err == nil {
		t.Error("another major version was read")
	}
}

func TestCookies(t *testing.T) {
	i, r, other := newEnd(t), newEnd(t), newEnd(t)
	now := time.Unix(1000, 0)
	src, elsewhere := netip.MustParseAddrPort("192.0.2.1:6783"), netip.MustParseAddrPort("192.0.2.2:6783")
	var c Cookies
	var jar Jar
	_, m1, err := Initiate(i.Local, r.public, 0x010203, testOffer)
	if err != nil {
		t.Fatal(err)
	}
	jar.Sign(m1, now)
	if c.Valid(m1, src, now) {
		t.Fatal("valid without a cookie")
	}
	reply := c.Reply(r.Key, m1, src, now)
	if len(reply) != CookieSize || Type(reply) != TypeCookie || Index(reply) != 0x010203 {
		t.Fatalf("reply %x", reply)
	}
	if err := jar.Put(reply, m1, other.public, now); err == nil {
		t.Error("a reply from someone else is taken")
	}
	_, m1b, _ := Initiate(i.Local, r.public, 4, testOffer)
	if err := jar.Put(reply, m1b, r.public, now); err == nil {
		t.Error("a reply to another initiation is taken")
	}
	if err := jar.Put(reply, m1, r.public, now); err != nil {
		t.Fatal(err)
	}
	jar.Sign(m1b, now)
	if err := r.Key.Check(m1b); err != nil {
		t.Error(err)
	}
	if !c.Valid(m1b, src, now) {
		t.Error("the cookie does not work")
	}
	if c.Valid(m1b, elsewhere, now) {
		t.Error("the cookie works from another address")
	}
	c.Reply(r.Key, m1, src, now.Add(cookieLife)) // a new secret
	if !c.Valid(m1b, src, now.Add(cookieLife)) {
		t.Error("a cookie dies with its secret instead of one later")
	}
	if c.Valid(m1b, src, now.Add(2*cookieLife)) {
		t.Error("a cookie lives too long")
	}
}

func FuzzRespond(f *testing.F) {
	i, r := newEnd(f), newEnd(f)
	_, m1, err := Initiate(i.Local, r.public, 1, testOffer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m1)
	f.Add(m1[:MinInitiation-1])
	f.Add([]byte{TypeInitiation})
	f.Fuzz(func(t *testing.T, b []byte) {
		if Type(b) != 0 {
			Index(b)
		}
		_ = r.Key.Check(b)
		m2, _, err := Respond(r.Local, b, take(idA, 1))
		if err == nil && len(m2) > len(b) {
			t.Errorf("answered %d bytes with %d", len(b), len(m2))
		}
	})
}

func FuzzFinish(f *testing.F) {
	i, r := newEnd(f), newEnd(f)
	p, m1, err := Initiate(i.Local, r.public, 1, testOffer)
	if err != nil {
		f.Fatal(err)
	}
	m2, _, err := Respond(r.Local, m1, take(idA, 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m2[:len(m2)-1])
	f.Add(append([]byte{TypeResponse}, make([]byte, 100)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := p.Finish(b, secrets); err == nil {
			t.Errorf("took %x", b)
		}
		var jar Jar
		if jar.Put(b, m1, r.public, time.Now()) == nil {
			t.Errorf("took cookie %x", b)
		}
	})
}

func FuzzOffer(f *testing.F) {
	f.Add(testOffer.append(nil))
	f.Add((&Answer{Index: 1, Cipher: 2, PSK: idB}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := parseOffer(b); err == nil {
			again, err := parseOffer(o.append(nil))
			if err != nil || again.Counter != o.Counter || !slices.Equal(again.PSKs, o.PSKs) {
				t.Errorf("%+v reads back as %+v, %v", o, again, err)
			}
		}
		if a, err := parseAnswer(b); err == nil {
			if again, err := parseAnswer(a.append(nil)); err != nil || again != a {
				t.Errorf("%+v reads back as %+v, %v", a, again, err)
			}
		}
	})
}

func BenchmarkInitiate(b *testing.B) {
	i, r := newEnd(b), newEnd(b)
	for b.Loop() {
		if _, _, err := Initiate(i.Local, r.public, 1, testOffer); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRespond(b *testing.B) {
	i, r := newEnd(b), newEnd(b)
	_, m1, _ := Initiate(i.Local, r.public, 1, testOffer)
	for b.Loop() {
		if _, _, err := Respond(r.Local, m1, take(idA, 1)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	i, r := newEnd(b), newEnd(b)
	_, m1, _ := Initiate(i.Local, r.public, 1, testOffer)
	for b.Loop() {
		if err := r.Key.Check(m1); err != nil {
			b.Fatal(err)
		}
	}
}
