package identity

import (
	"fmt"
	"unicode"
	"unicode/utf8"

	"weft/crypto/tlv"
)

// CheckName says whether a name can be given to a node or cluster. It is shown on terminals and in logs, so it holds
// printable characters only, no space.
func CheckName(name string) error {
	if len(name) > MaxName {
		return fmt.Errorf("name %q: %d bytes, at most %d", name, len(name), MaxName)
	}
	if !utf8.ValidString(name) {
		return fmt.Errorf("name %q: not UTF-8", name)
	}
	for _, c := range name {
		if !unicode.IsPrint(c) || c == ' ' {
			return fmt.Errorf("name %q: the character %q cannot be part of it", name, c)
		}
	}
	return nil
}

// appendName leaves the empty name out; a bad one is found when the new item is parsed.
func appendName(b []byte, tag uint16, name string) []byte {
	if name == "" {
		return b
	}
	return tlv.AppendString(b, tag, name)
}

func readName(r *tlv.Reader, tag uint16) string {
	name := r.String(tag, MaxName)
	if err := CheckName(name); err != nil {
		r.Fail(err)
		return ""
	}
	return name
}
