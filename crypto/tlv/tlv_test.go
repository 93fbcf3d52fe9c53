package tlv

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestAppendedFieldsAreFound(t *testing.T) {
	b := AppendUint8(nil, 1, 7)
	b = AppendUint16(b, 2, 0x0102)
	b = AppendUint32(b, 3, 0x01020304)
	b = AppendUint64(b, 4, 1<<63)
	b = AppendString(b, 5, "nöde")
	b = AppendPrefix(b, 6, netip.MustParsePrefix("10.32.0.9/12"))
	b = AppendAddrPort(b, 7, netip.MustParseAddrPort("[::ffff:10.0.0.7]:6783"))
	b = AppendList(b, 8, [][]byte{{1}, {}, {2, 3}})
	b = AppendBool(b, 9, true)
	b = AppendBool(b, 10, false)
	f, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	r := NewReader(f)
	r.Require(1, 2, 3, 4, 5, 6, 7, 8, 9)
	if r.Uint8(1) != 7 || r.Uint16(2) != 0x0102 || r.Uint32(3) != 0x01020304 || r.Uint64(4) != 1<<63 {
		t.Error("numbers differ")
	}
	if r.String(5, 10) != "nöde" || !r.Bool(9) || r.Bool(10) || r.Has(10) {
		t.Error("string or flags differ")
	}
	if p := r.Prefix(6); p != netip.MustParsePrefix("10.32.0.0/12") {
		t.Errorf("prefix %v", p)
	}
	if ap := r.AddrPort(7); ap != netip.MustParseAddrPort("10.0.0.7:6783") {
		t.Errorf("endpoint %v", ap)
	}
	if l := r.List(8, 3); !slices.EqualFunc(l, [][]byte{{1}, {}, {2, 3}}, bytes.Equal) {
		t.Errorf("list %x", l)
	}
	if err := r.Err(); err != nil {
		t.Error(err)
	}
}

func TestParseRefuses(t *testing.T) {
	many := []byte{}
	for i := range MaxFields + 1 {
		many = Append(many, uint16(i), nil)
	}
	for name, b := range map[string][]byte{
		"a header that is cut off":   {0, 1, 0, 0, 0},
		"a value that is cut off":    {0, 1, 0, 0, 0, 2, 1},
		"a length beyond any memory": {0, 1, 0xff, 0xff, 0xff, 0xff, 1},
		"tags that fall":             Append(Append(nil, 2, nil), 1, nil),
		"a tag twice":                Append(Append(nil, 1, nil), 1, nil),
		"more fields than the limit": many,
		"more bytes than the limit":  make([]byte, MaxSize+1),
		"bytes after the last field": append(Append(nil, 1, []byte{1}), 0),
	} {
		if _, err := Parse(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReaderRemembersTheFirstFault(t *testing.T) {
	f, err := Parse(Append(Append(nil, 1, []byte{1, 2}), 2, []byte{0xff}))
	if err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func(*Reader){
		"number of another size":   func(r *Reader) { r.Uint64(1) },
		"absent field":             func(r *Reader) { r.Require(3) },
		"too long":                 func(r *Reader) { r.Bytes(1, 1) },
		"not UTF-8":                func(r *Reader) { r.String(2, 9) },
		"prefix of another size":   func(r *Reader) { r.Prefix(1) },
		"endpoint of another size": func(r *Reader) { r.AddrPort(1) },
		"list that is cut off":     func(r *Reader) { r.List(1, 9) },
		"fixed bytes":              func(r *Reader) { r.Copy(1, make([]byte, 3)) },
	} {
		r := NewReader(f)
		if read(r); !errors.Is(r.Err(), ErrMalformed) {
			t.Errorf("%s: %v", name, r.Err())
		}
	}
}

func TestVersions(t *testing.T) {
	if _, _, err := ParseVersioned("thing", AppendVersion(nil, V(1, 9)), V(1, 0)); err != nil {
		t.Errorf("a higher minor version: %v", err)
	}
	for _, v := range []Version{V(2, 0), V(0, 1)} {
		_, _, err := ParseVersioned("thing", AppendVersion(nil, v), V(1, 0))
		var e *VersionError
		if !errors.As(err, &e) || e.Got != v {
			t.Errorf("version %s: %v", v, err)
		}
	}
	if _, _, err := ParseVersioned("thing", nil, V(1, 0)); !errors.Is(err, ErrMalformed) {
		t.Errorf("nothing: %v", err)
	}
}

func TestUnknownFieldsSurvive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tags := rapid.SliceOfNDistinct(rapid.Uint16(), 0, 20, rapid.ID[uint16]).Draw(t, "tags")
		slices.Sort(tags)
		var b []byte
		values := map[uint16][]byte{}
		for _, tag := range tags {
			values[tag] = rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "value")
			b = Append(b, tag, values[tag])
		}
		f, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		var again []byte
		for tag, value := range f.All() {
			again = Append(again, tag, value)
		}
		if !bytes.Equal(again, b) {
			t.Fatal("the bytes changed")
		}
		for tag, want := range values {
			if got, ok := f.Get(tag); !ok || !bytes.Equal(got, want) {
				t.Fatalf("tag %d: %x", tag, got)
			}
		}
	})
}

func TestLookupAllocatesNothing(t *testing.T) {
	b := Append(Append(nil, 1, []byte{1}), 9, []byte{2})
	n := testing.AllocsPerRun(100, func() {
		f, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if v, ok := f.Get(9); !ok || v[0] != 2 {
			t.Fatal("not found")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(Append(Append(nil, 1, []byte("a")), 300, nil))
	f.Add(AppendList(nil, 2, [][]byte{{1}, {2, 3}}))
	f.Add(AppendAddrPort(AppendPrefix(nil, 1, netip.MustParsePrefix("fd00::/96")), 2, netip.MustParseAddrPort("[fd00::1]:1")))
	f.Fuzz(func(t *testing.T, b []byte) {
		fields, err := Parse(b)
		if err != nil {
			return
		}
		var again []byte
		for tag, value := range fields.All() {
			again = Append(again, tag, value)
			if items, err := List(value, 100); err == nil {
				if len(items) > 0 && !bytes.Equal(AppendList(nil, tag, items), Append(nil, tag, value)) {
					t.Fatalf("list %x changed", value)
				}
			}
			if p, err := ParsePrefix(value); err == nil && !bytes.Equal(Prefix(p), value) {
				t.Fatalf("prefix %x changed to %x", value, Prefix(p))
			}
			if ap, err := ParseAddrPort(value); err == nil && !bytes.Equal(AddrPort(ap), value) {
				t.Fatalf("endpoint %x changed to %x", value, AddrPort(ap))
			}
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
