package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"testing"
)

var suites = []Suite{AES256GCM, ChaCha20Poly1305}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPublishedVectors: RFC 8439 appendix A.5 (whose nonce happens to have our form) and the AES-256 cases 13 and 14
// of the GCM specification.
func TestPublishedVectors(t *testing.T) {
	for _, v := range []struct {
		name                 string
		suite                Suite
		counter              uint64
		key, plain, ad, wire string
	}{
		{
			"RFC 8439 A.5", ChaCha20Poly1305, 0x0102030405060708,
			"1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0",
			"496e7465726e65742d4472616674732061726520647261667420646f63756d656e74732076616c696420666f722061206d6178696d75" +
				"6d206f6620736978206d6f6e74687320616e64206d617920626520757064617465642c207265706c616365642c206f72206f62736f6c" +
				"65746564206279206f7468657220646f63756d656e747320617420616e792074696d652e20497420697320696e617070726f70726961" +
				"746520746f2075736520496e7465726e65742d447261667473206173207265666572656e6365206d6174657269616c206f7220746f20" +
				"63697465207468656d206f74686572207468616e206173202fe2809c776f726b20696e2070726f67726573732e2fe2809d",
			"f33388860000000000004e91",
			"64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb24c6cfc18755d43eea09ee94e382d26b0bdb7b73c321b" +
				"0100d4f03b7f355894cf332f830e710b97ce98c8a84abd0b948114ad176e008d33bd60f982b1ff37c8559797a06ef4f0ef61c186324e" +
				"2b3506383606907b6a7c02b0f9f6157b53c867e4b9166c767b804d46a59b5216cde7a4e99040c5a40433225ee282a1b0a06c523eaf45" +
				"34d7f83fa1155b0047718cbc546a0d072b04b3564eea1b422273f548271a0bb2316053fa76991955ebd63159434ecebb4e466dae5a10" +
				"73a6727627097a1049e617d91d361094fa68f0ff77987130305beaba2eda04df997b714d6c6f2c29a6ad5cb4022b02709b" +
				"eead9d67890cbb22392336fea1851f38",
		},
		{
			"GCM case 13", AES256GCM, 0,
			"0000000000000000000000000000000000000000000000000000000000000000", "", "", "530f8afbc74536b9a963b4f1c4cb738b",
		},
		{
			"GCM case 14", AES256GCM, 0,
			"0000000000000000000000000000000000000000000000000000000000000000", "00000000000000000000000000000000", "",
			"cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			key, plain, ad, want := [32]byte(unhex(t, v.key)), unhex(t, v.plain), unhex(t, v.ad), unhex(t, v.wire)
			s, err := NewSealer(v.suite, &key)
			if err != nil {
				t.Fatal(err)
			}
			s.next = v.counter
			got, err := s.Seal(nil, plain, ad)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("sealed %x, %v, want %x", got, err, want)
			}
			o, err := NewOpener(v.suite, &key)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := o.Open(nil, v.counter, want, ad); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("opened %x, %v", got, err)
			}
		})
	}
}

// TestGCMAgainstDefinition recomputes GCM bit by bit from its definition, with counters and additional data.
func TestGCMAgainstDefinition(t *testing.T) {
	key := [32]byte{9, 8, 7}
	s, err := NewSealer(AES256GCM, &key)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := aes.NewCipher(key[:])
	encrypt := func(in [16]byte) (out [16]byte) { block.Encrypt(out[:], in[:]); return }
	for _, counter := range []uint64{0, 1, 255, 1 << 40, MaxCounter} {
		for _, n := range []int{0, 1, 16, 57} {
			plain, ad := bytes.Repeat([]byte{0x5a}, n), []byte("twelve bytes")
			var j0 [16]byte
			binary.BigEndian.PutUint64(j0[4:], counter)
			j0[15] = 1
			sealed := make([]byte, n)
			for i := range plain {
				ctr := j0
				binary.BigEndian.PutUint32(ctr[12:], uint32(2+i/16))
				stream := encrypt(ctr)
				sealed[i] = plain[i] ^ stream[i%16]
			}
			tag := ghash(encrypt([16]byte{}), ad, sealed)
			mask := encrypt(j0)
			for i := range tag {
				tag[i] ^= mask[i]
			}
			s.next = counter
			if got, err := s.Seal(nil, plain, ad); err != nil || !bytes.Equal(got, append(sealed, tag[:]...)) {
				t.Errorf("counter %d, %d bytes: %x, %v", counter, n, got, err)
			}
		}
	}
}

// ghash multiplies in GF(2^128), most significant bit first in each byte.
func ghash(h [16]byte, ad, c []byte) [16]byte {
	padded := func(b []byte) []byte { return append(bytes.Clone(b), make([]byte, (16-len(b)%16)%16)...) }
	in := append(padded(ad), padded(c)...)
	in = binary.BigEndian.AppendUint64(in, uint64(len(ad))*8)
	in = binary.BigEndian.AppendUint64(in, uint64(len(c))*8)
	r := new(big.Int).Lsh(big.NewInt(0xe1), 120)
	y, hh := new(big.Int), new(big.Int).SetBytes(h[:])
	for ; len(in) > 0; in = in[16:] {
		y.Xor(y, new(big.Int).SetBytes(in[:16]))
		z, v := new(big.Int), new(big.Int).Set(hh)
		for bit := 127; bit >= 0; bit-- {
			if y.Bit(bit) == 1 {
				z.Xor(z, v)
			}
			low := v.Bit(0)
			v.Rsh(v, 1)
			if low == 1 {
				v.Xor(v, r)
			}
		}
		y = z
	}
	var out [16]byte
	y.FillBytes(out[:])
	return out
}

func pair(t testing.TB, suite Suite) (*Sealer, *Opener) {
	t.Helper()
	key := [32]byte{1, 2, 3}
	s, err := NewSealer(suite, &key)
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewOpener(suite, &key)
	if err != nil {
		t.Fatal(err)
	}
	return s, o
}

func TestEveryFlippedBitIsRefused(t *testing.T) {
	for _, suite := range suites {
		s, o := pair(t, suite)
		ad := []byte("header")
		c := s.Next()
		sealed, _ := s.Seal(nil, []byte("some plaintext"), ad)
		for bit := range len(sealed) * 8 {
			b := bytes.Clone(sealed)
			b[bit/8] ^= 1 << (bit % 8)
			if _, err := o.Open(nil, c, b, ad); !errors.Is(err, ErrOpen) {
				t.Fatalf("%v: bit %d: %v", suite, bit, err)
			}
		}
		if _, err := o.Open(nil, c+1, sealed, ad); !errors.Is(err, ErrOpen) {
			t.Errorf("%v: another counter: %v", suite, err)
		}
		if _, err := o.Open(nil, c, sealed, []byte("Header")); !errors.Is(err, ErrOpen) {
			t.Errorf("%v: another header: %v", suite, err)
		}
		for n := range sealed {
			if _, err := o.Open(nil, c, sealed[:n], ad); !errors.Is(err, ErrOpen) {
				t.Errorf("%v: cut to %d: %v", suite, n, err)
			}
		}
		if got, err := o.Open(nil, c, sealed, ad); err != nil || string(got) != "some plaintext" {
			t.Errorf("%v: %q, %v", suite, got, err)
		}
	}
}

func TestCountersRunOut(t *testing.T) {
	for _, suite := range suites {
		s, o := pair(t, suite)
		s.next = MaxCounter
		sealed, err := s.Seal(nil, []byte("last"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Open(nil, MaxCounter, sealed, nil); err != nil {
			t.Error(err)
		}
		if out, err := s.Seal([]byte("x"), []byte("one more"), nil); !errors.Is(err, ErrExhausted) || string(out) != "x" {
			t.Errorf("%v: %q, %v", suite, out, err)
		}
		if _, err := o.Open(nil, MaxCounter+1, sealed, nil); !errors.Is(err, ErrOpen) {
			t.Errorf("%v: %v", suite, err)
		}
	}
}

func TestLaneKeysDiffer(t *testing.T) {
	key := [32]byte{1}
	seen := map[[32]byte]int{key: -1}
	for lane := range 256 {
		k := LaneKey(&key, uint8(lane))
		if other, ok := seen[k]; ok {
			t.Fatalf("lanes %d and %d have one key", lane, other)
		}
		seen[k] = lane
	}
	want, _ := hkdf.Expand(sha256.New, key[:], "weft lane \x03", 32)
	if k := LaneKey(&key, 3); !bytes.Equal(k[:], want) {
		t.Errorf("lane 3 is %x", k)
	}
}

func TestSealAndOpenInPlaceDoNotAllocate(t *testing.T) {
	for _, suite := range suites {
		s, o := pair(t, suite)
		buf := make([]byte, 1400, 1400+Overhead)
		ad := make([]byte, 12)
		n := testing.AllocsPerRun(500, func() {
			c := s.Next()
			sealed, err := s.Seal(buf[:0], buf, ad)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := o.Open(sealed[:0], c, sealed, ad); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%v: %v allocations per datagram, want 0", suite, n)
		}
	}
}

func TestUnknownSuite(t *testing.T) {
	if _, err := NewSealer(77, &[32]byte{}); err == nil {
		t.Error("made a sealer")
	}
	if got := Supported(); got[len(got)-1] != ChaCha20Poly1305 {
		t.Errorf("supported: %v", got)
	}
}

func BenchmarkSeal(b *testing.B) {
	for _, suite := range suites {
		for _, size := range []int{64, 1400, 8900} {
			b.Run(fmt.Sprintf("%v/%d", suite, size), func(b *testing.B) {
				s, _ := pair(b, suite)
				src, dst, ad := make([]byte, size), make([]byte, 0, size+Overhead), make([]byte, 12)
				b.SetBytes(int64(size))
				for b.Loop() {
					if _, err := s.Seal(dst, src, ad); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, suite := range suites {
		for _, size := range []int{64, 1400, 8900} {
			b.Run(fmt.Sprintf("%v/%d", suite, size), func(b *testing.B) {
				s, o := pair(b, suite)
				ad := make([]byte, 12)
				sealed, _ := s.Seal(nil, make([]byte, size), ad)
				dst := make([]byte, 0, size)
				b.SetBytes(int64(size))
				for b.Loop() {
					if _, err := o.Open(dst, 0, sealed, ad); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
