package ipam

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// lockTimeout is how long to wait for another process that has the file open: long enough for one that is ending.
const lockTimeout = 2 * time.Second

// Bolt is a Store in one bbolt file.
type Bolt struct{ db *bbolt.DB }

var _ Store = (*Bolt)(nil)

// OpenBolt opens or creates the store in a file. Only one process can have it open.
func OpenBolt(path string) (*Bolt, error) {
	// bbolt would keep such a file locked after its error.
	if st, err := os.Stat(path); err == nil && st.Size() > 0 && st.Size() < 2*int64(os.Getpagesize()) {
		return nil, damaged(path, fmt.Sprintf("it has %d bytes", st.Size()))
	}
	var db *bbolt.DB
	err := guard(path, func() (err error) {
		// The list of free pages stays on disk (NoFreelistSync would save a page per commit): to rebuild it, bbolt walks
		// all pages in a goroutine of its own, where a damaged page ends the process and no guard can help.
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType})
		return err
	})
	if err == nil {
		if err = checkStructure(path, db.Info().PageSize); err != nil {
			err = errors.Join(damaged(path, err), guard(path, db.Close))
		}
	}
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("another weftd uses %s. Stop it, or give this one a --state of its own", path)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, damaged(path, err)
	case errors.Is(err, ErrDamaged):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("open address store: %w", err)
	}
	// bbolt syncs the file, but not its name.
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(fmt.Errorf("open address store: %w", err), db.Close())
	}
	return &Bolt{db: db}, nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Load yields every entry, tables that this build does not know included.
func (b *Bolt) Load(yield func(table Table, key, value []byte) error) error {
	var stop error // yield's own error, which says nothing about the file
	err := guard(b.db.Path(), func() error {
		return b.db.View(func(tx *bbolt.Tx) error {
			want, err := readTotal(tx)
			if err != nil {
				return damaged(b.db.Path(), err)
			}
			var have total
			err = tx.ForEach(func(name []byte, bucket *bbolt.Bucket) error {
				if string(name) == sumBucket {
					return nil
				}
				return bucket.ForEach(func(key, sealed []byte) error {
					value, crc, err := unseal(Table(name), key, sealed)
					if err != nil {
						return damaged(b.db.Path(), err)
					}
					have.add(crc)
					stop = yield(Table(name), key, value)
					return stop
				})
			})
			if err == nil && have != want {
				return damaged(b.db.Path(), errSum)
			}
			return err
		})
	})
	if stop == nil && err != nil {
		return fmt.Errorf("read address store: %w", err)
	}
	return err
}

// Commit writes one transaction and syncs the file.
func (b *Bolt) Commit(ops []Op) error {
	err := guard(b.db.Path(), func() error {
		return b.db.Update(func(tx *bbolt.Tx) error {
			all, err := readTotal(tx)
			if err != nil {
				return damaged(b.db.Path(), err)
			}
			for _, op := range ops {
				bucket, err := tx.CreateBucketIfNotExists([]byte(op.Table))
				if err != nil {
					return err
				}
				all.take(bucket.Get(op.Key))
				// The keys and values of a transaction must not change until it ends.
				if op.Value == nil {
					err = bucket.Delete(op.Key)
				} else {
					all.add(checksum(op.Table, op.Key, op.Value))
					err = bucket.Put(slices.Clone(op.Key), seal(op.Table, op.Key, op.Value))
				}
				if err != nil {
					return err
				}
			}
			return writeTotal(tx, all)
		})
	})
	if err != nil {
		return fmt.Errorf("write address store: %w", err)
	}
	return nil
}

// Close ends the use of the file.
func (b *Bolt) Close() error { return b.db.Close() }

// guard turns the panics by which bbolt answers a damaged file into an error, reads beyond a truncated one included.
func guard(path string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = damaged(path, r)
		}
	}()
	return f()
}

func damaged(path string, cause any) error {
	return fmt.Errorf("%w: %s (%v). Its addresses are still this node's, and nobody else knows which are in use. "+
		"Restore the file, or leave the cluster and join again: weft leave --purge", ErrDamaged, path, cause)
}
