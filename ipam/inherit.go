package ipam

import (
	"bytes"
	"errors"
	"fmt"

	"weft/crypto/tlv"
)

// Inherit puts the claims of containers from one store into another, empty one: for a machine that comes back under a new
// identity while its containers run. Their addresses are not in the new node's blocks, so it reports them as strays.
func Inherit(from, to Store) error {
	ops := []Op{putFormat()}
	err := from.Load(func(table Table, key, value []byte) error {
		if table != tableClaim {
			return nil
		}
		r, err := parseValue("a claim", value)
		if err != nil {
			if _, newer := errors.AsType[*tlv.VersionError](err); newer {
				return err
			}
			return fmt.Errorf("%w: key %x: %w", ErrDamaged, key, err)
		}
		if !r.Bool(tagClaimHost) {
			ops = append(ops, Op{tableClaim, bytes.Clone(key), bytes.Clone(value)})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("inherit claims: %w", err)
	}
	if err := to.Commit(ops); err != nil {
		return fmt.Errorf("inherit claims: %w", err)
	}
	return nil
}
