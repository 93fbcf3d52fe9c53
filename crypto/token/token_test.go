package token

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

var (
	root  = identity.Fingerprint{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	node  = peer.ID{0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0x11, 0x22, 0x33}
	first = SeedOf(netip.MustParseAddrPort("10.0.0.7:6783"), node)
	sixth = SeedOf(netip.MustParseAddrPort("[fd00::7]:443"), node)
)

func sample() Token {
	secret := [SecretSize]byte(bytes.Repeat([]byte{0x5a}, SecretSize))
	return Token{Root: root, Seeds: []Seed{first, sixth}, secret: &secret}
}

// The text of a token and the key made of it are part of the protocol. Both were computed by another implementation.
const golden = "weft1aeaqeayeaudaocajbifqydiob4ifuws2ljnfuws2ljnfuws2ljnfuaqebiaaaby2p6vlxtg5537rciqq7uaaaaaaaaaaaaaaaaaaaaaaa4a3xkv3zto657yrejcvgb6y"

const goldenKey = "7316635624ee784f73de94936d712c6da3ede4bad5b6a116ea873da97e7365ef"

func TestGolden(t *testing.T) {
	if got := sample().Format(); got != golden {
		t.Errorf("the text changed:\n%s", got)
	}
	got, err := Parse(golden)
	if err != nil || !reflect.DeepEqual(got, sample()) {
		t.Errorf("%+v, %v", got, err)
	}
	key, err := got.Key()
	if err != nil || hex.EncodeToString(key.Bytes()) != goldenKey {
		t.Errorf("the key changed: %x, %v", key.Bytes(), err)
	}
}

func TestTokensSurviveText(t *testing.T) {
	endpoint := rapid.Custom(func(t *rapid.T) Seed {
		var a netip.Addr
		if rapid.Bool().Draw(t, "v4") {
			a = netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "host")})
		} else {
			a = netip.AddrFrom16([16]byte{0xfd, 15: rapid.ByteMin(1).Draw(t, "host")})
		}
		var id peer.ID
		copy(id[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		return SeedOf(netip.AddrPortFrom(a, rapid.Uint16Min(1).Draw(t, "port")), id)
	})
	rapid.Check(t, func(t *rapid.T) {
		tok, err := New(root, rapid.SliceOfN(endpoint, 1, MaxSeeds).Draw(t, "seeds")...)
		if err != nil {
			t.Fatal(err)
		}
		text := tok.Format()
		if !regexp.MustCompile("^"+Pattern+"$").MatchString(text) || len(text) > MaxLength {
			t.Fatalf("text %q", text)
		}
		got, err := Parse(" " + text + "\n")
		if err != nil || !reflect.DeepEqual(got, tok) {
			t.Fatalf("%v, %v", got, err)
		}
		// One wrong character, anywhere.
		at := rapid.IntRange(len("weft1"), len(text)-1).Draw(t, "at")
		wrong := rapid.SampledFrom([]byte("abcdefghijklmnopqrstuvwxyz234567")).Draw(t, "wrong")
		if wrong != text[at] {
			if _, err := Parse(text[:at] + string(wrong) + text[at+1:]); err == nil {
				t.Fatal("a typing error was not noticed")
			}
		}
		if _, err := Parse(text[:at]); code(err) != CodeTruncated {
			t.Fatalf("cut off after %d: %v", at, err)
		}
	})
}

func code(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

func TestSentences(t *testing.T) {
	future := []byte{2, 1, 2, 3}
	sum := check(future)
	for name, c := range map[string]struct{ in, code string }{
		"nothing":                 {"", CodeNotToken},
		"a file name":             {"/etc/hosts", CodeNotToken},
		"far too long":            {"weft1" + strings.Repeat("a", MaxLength), CodeNotToken},
		"prefix alone":            {"weft1", CodeTruncated},
		"cut off":                 {golden[:60], CodeTruncated},
		"one character less":      {golden[:len(golden)-1], CodeTruncated},
		"one character more":      {golden + "a", CodeTruncated},
		"letters changed":         {golden[:20] + "zz" + golden[22:], CodeTruncated},
		"upper case":              {"weft1" + strings.ToUpper(golden[5:]), CodeTruncated},
		"a space inside":          {golden[:30] + " " + golden[30:], CodeTruncated},
		"a digit that is none":    {golden[:30] + "1" + golden[31:], CodeTruncated},
		"a newer version byte":    {"weft1" + encoding.EncodeToString(append(future, sum[:]...)), CodeNewer},
		"a newer form altogether": {"weft2abc", CodeNewer},
	} {
		_, err := Parse(c.in)
		if code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
		var e *Error
		if errors.As(err, &e) && (e.Sentence == "" || e.Hint == "" || e.Cause == "") {
			t.Errorf("%s: no words", name)
		}
		if err != nil && len(c.in) > 20 && strings.Contains(err.Error(), c.in[5:20]) {
			t.Errorf("%s: the error holds the token: %v", name, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, seeds := range map[string][]Seed{
		"no seed":     {},
		"four seeds":  {first, first, first, first},
		"no address":  {{}},
		"port 0":      {SeedOf(netip.MustParseAddrPort("10.0.0.7:0"), node)},
		"any address": {SeedOf(netip.MustParseAddrPort("0.0.0.0:6783"), node)},
		"a multicast": {SeedOf(netip.MustParseAddrPort("224.0.0.1:6783"), node)},
	} {
		if _, err := New(root, seeds...); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	mapped, err := New(root, SeedOf(netip.MustParseAddrPort("[::ffff:10.0.0.7]:6783"), node))
	if err != nil || mapped.Seeds[0].Endpoint != first.Endpoint || !mapped.Seeds[0].Is(node) || mapped.Seeds[0].Is(peer.ID{}) {
		t.Errorf("IPv4 in IPv6: %v, %v", mapped, err)
	}
}

func TestSecretsOfTokensDiffer(t *testing.T) {
	a, err := New(root, first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(root, first)
	if err != nil {
		t.Fatal(err)
	}
	ka, _ := a.Key()
	kb, _ := b.Key()
	if ka.Equal(kb) {
		t.Error("two tokens, one key")
	}
	if _, err := (Token{}).Key(); err == nil {
		t.Error("an empty token has a key")
	}
}

func TestTokensDoNotLeak(t *testing.T) {
	tok := sample()
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", tok)
	hidden := struct{ t Token }{tok}
	out := fmt.Sprintf("%v %+v %#v %s %v", tok, tok, tok, tok, hidden) + log.String()
	for _, secret := range []string{golden[5:30], "5a5a", "90 90", "0x5a"} {
		if strings.Contains(out, secret) {
			t.Errorf("%q is in %s", secret, out)
		}
	}
}

func TestLookup(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(golden+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for arg, stdin := range map[string]string{"-": golden + "\n", "@" + file: "", golden: "", " " + golden + " ": ""} {
		got, err := Lookup(arg, strings.NewReader(stdin))
		if err != nil || got != golden {
			t.Errorf("%q: %q, %v", arg, got, err)
		}
	}
	if _, err := Lookup("@"+filepath.Join(dir, "none"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for arg, stdin := range map[string]string{"-": " \n", "@" + empty: ""} {
		if _, err := Lookup(arg, strings.NewReader(stdin)); err == nil {
			t.Errorf("%q: nothing was a token", arg)
		}
	}
	if s, err := Lookup("-", strings.NewReader(strings.Repeat("a", 1<<20))); err != nil || len(s) > 4*MaxLength {
		t.Errorf("endless stdin: %d characters, %v", len(s), err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(golden)
	f.Add(golden[:60])
	f.Add("weft2abc")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := Parse(s)
		if err != nil {
			if code(err) == "" {
				t.Fatalf("an error without code: %v", err)
			}
			return
		}
		if tok.Format() != strings.TrimSpace(s) {
			t.Fatalf("%q became %q", s, tok.Format())
		}
	})
}

// FuzzParseBody goes past the check, which a fuzzer does not guess.
func FuzzParseBody(f *testing.F) {
	b, err := encoding.DecodeString(golden[len("weft1"):])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:len(b)-checkSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		sum := check(b)
		text := "weft1" + encoding.EncodeToString(append(bytes.Clone(b), sum[:]...))
		if tok, err := Parse(text); err == nil && tok.Format() != text {
			t.Fatalf("%x became another token", b)
		}
	})
}
