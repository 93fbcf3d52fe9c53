package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"go.etcd.io/bbolt"
)

// bbolt keeps no checksums of its pages, so a flipped bit is an address of somebody else. Hence each value ends in a
// CRC-32C over table, key and value, and one bucket holds the number of all entries and the sum of their checksums: an
// entry that has changed, gone or come by itself is noticed when the store is read. Both are part of the transaction.
//
//	value  = what was put ‖ crc32c(table ‖ 0 ‖ key length (uint32) ‖ key ‖ what was put)
//	"sum"  = {"sum": entries (uint64) ‖ sum of the entries' checksums (uint64)}
const (
	sumBucket = "sum"
	sumKey    = "sum"
	crcSize   = 4
)

var errSum = errors.New("the sum of its entries is wrong")

// checksum is the CRC-32C of an entry.
func checksum(table Table, key, value []byte) uint32 {
	castagnoli := crc32.MakeTable(crc32.Castagnoli) // made once by the standard library
	crc := crc32.Update(0, castagnoli, []byte(table))
	crc = crc32.Update(crc, castagnoli, binary.BigEndian.AppendUint32([]byte{0}, uint32(len(key))))
	crc = crc32.Update(crc, castagnoli, key)
	return crc32.Update(crc, castagnoli, value)
}

// seal is a value as it is stored.
func seal(table Table, key, value []byte) []byte {
	sealed := make([]byte, 0, len(value)+crcSize)
	return binary.BigEndian.AppendUint32(append(sealed, value...), checksum(table, key, value))
}

// unseal is the inverse of seal.
func unseal(table Table, key, sealed []byte) (value []byte, crc uint32, err error) {
	n := len(sealed) - crcSize
	if n < 0 {
		return nil, 0, fmt.Errorf("table %s, key %x: value of %d bytes", table, key, len(sealed))
	}
	value, crc = sealed[:n:n], binary.BigEndian.Uint32(sealed[n:])
	if crc != checksum(table, key, value) {
		return nil, 0, fmt.Errorf("table %s, key %x: wrong checksum", table, key)
	}
	return value, crc, nil
}

// total counts all entries and adds up their checksums.
type total struct{ entries, sum uint64 }

func (t *total) add(crc uint32) {
	t.entries++
	t.sum += uint64(crc)
}

func (t *total) take(sealed []byte) {
	if len(sealed) >= crcSize {
		t.entries--
		t.sum -= uint64(binary.BigEndian.Uint32(sealed[len(sealed)-crcSize:]))
	}
}

// readTotal is what the last transaction wrote; zero in a new file.
func readTotal(tx *bbolt.Tx) (total, error) {
	b := tx.Bucket([]byte(sumBucket))
	if b == nil {
		return total{}, nil
	}
	v := b.Get([]byte(sumKey))
	if len(v) != 16 {
		return total{}, errSum
	}
	return total{binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])}, nil
}

func writeTotal(tx *bbolt.Tx, t total) error {
	b, err := tx.CreateBucketIfNotExists([]byte(sumBucket))
	if err != nil {
		return err
	}
	v := binary.BigEndian.AppendUint64(make([]byte, 0, 16), t.entries)
	return b.Put([]byte(sumKey), binary.BigEndian.AppendUint64(v, t.sum))
}
