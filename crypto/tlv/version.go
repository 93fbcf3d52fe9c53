package tlv

import "fmt"

// Version is the first byte of every message, record and stored value: the major number in the upper four bits, the
// minor in the lower. A higher minor number only adds fields, so it can be read; another major number cannot.
type Version uint8

// V makes a version of a major and a minor number, each below 16.
func V(major, minor uint8) Version { return Version(major<<4 | minor&0xf) }

// Major is the number that reader and writer must share.
func (v Version) Major() uint8 { return uint8(v) >> 4 }

// Minor counts the additions.
func (v Version) Minor() uint8 { return uint8(v) & 0xf }

// String is "major.minor".
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major(), v.Minor()) }

// VersionError says that something was written in a format that this build does not read.
type VersionError struct {
	What string // what was read, as a noun: "certificate"
	Got  Version
	Want Version
}

// Error is a sentence for people: it says which side is the older one.
func (e *VersionError) Error() string {
	side := "a newer"
	if e.Got.Major() < e.Want.Major() {
		side = "an older"
	}
	return fmt.Sprintf("%s was written by %s weft (format %s, this one reads %d.x)", e.What, side, e.Got, e.Want.Major())
}

// AppendVersion starts a message.
func AppendVersion(dst []byte, v Version) []byte { return append(dst, byte(v)) }

// ParseVersioned reads a version byte and the fields after it. What names the message in errors.
func ParseVersioned(what string, b []byte, want Version) (Version, Fields, error) {
	if len(b) == 0 {
		return 0, Fields{}, fmt.Errorf("parse %s: %w: empty", what, ErrMalformed)
	}
	got := Version(b[0])
	if got.Major() != want.Major() {
		return got, Fields{}, &VersionError{What: what, Got: got, Want: want}
	}
	f, err := Parse(b[1:])
	if err != nil {
		return got, Fields{}, fmt.Errorf("parse %s: %w", what, err)
	}
	return got, f, nil
}
