package ipam

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// bbolt trusts its file: a page that leads back to itself is followed until memory ends, a free page that is in use is
// written over, and of its two meta pages an unreadable one is passed over in silence, so that the file is one
// transaction back. So the structure is checked once, after the file is locked and before it is used. The format is
// bbolt's version 2, in the byte order of the machine:
//
//	page    = id (8) ‖ flags (2) ‖ count (2) ‖ overflow pages (4) ‖ elements
//	meta    = magic (4) ‖ version (4) ‖ page size (4) ‖ flags (4) ‖ root (16) ‖ freelist (8) ‖ pages (8) ‖ transaction (8) ‖ FNV-1a
//	branch  = {offset of key (4) ‖ key size (4) ‖ page (8)} ...
//	leaf    = {flags (4) ‖ offset of key (4) ‖ key size (4) ‖ value size (4)} ...
//	freelist= pages (8 each); where count is 65535, the first one is the count
//	bucket  = root page (8) ‖ sequence (8), a leaf's value; with root 0 a page follows inline
const (
	boltHeader   = 16
	boltElement  = 16
	boltBucket   = 16
	boltMetaSize = 64
	boltMagic    = 0xED0CDAED
	boltBranch   = 0x01
	boltLeaf     = 0x02
	boltFreelist = 0x10
	boltIsBucket = 0x01
	boltMaxDepth = 64
)

// structure walks a bbolt file.
type structure struct {
	file  io.ReaderAt
	size  int64
	page  int64 // bytes of one
	pages uint64
	seen  map[uint64]bool
}

// checkStructure verifies that every page of a bbolt file is used once, as what it is, and that free pages are free.
func checkStructure(path string, pageSize int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	s := structure{file: f, size: st.Size(), page: int64(pageSize), seen: make(map[uint64]bool)}
	root, free, err := s.metas()
	if err != nil {
		return err
	}
	if err := s.walk(root, 0); err != nil {
		return err
	}
	return s.free(free)
}

// metas reads both meta pages, of which the one with the higher transaction counts.
func (s *structure) metas() (root, free uint64, err error) {
	var newest uint64
	for i := range int64(2) {
		b := make([]byte, boltHeader+boltMetaSize)
		if _, err := s.file.ReadAt(b, i*s.page); err != nil {
			return 0, 0, fmt.Errorf("meta page %d: %w", i, err)
		}
		m := b[boltHeader:]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:boltMetaSize-8])
		e := binary.NativeEndian
		if e.Uint32(m) != boltMagic || int64(e.Uint32(m[8:])) != s.page || e.Uint64(m[boltMetaSize-8:]) != sum.Sum64() {
			return 0, 0, fmt.Errorf("meta page %d is not what was written", i)
		}
		if tx := e.Uint64(m[48:]); i == 0 || tx > newest {
			newest, root, free, s.pages = tx, e.Uint64(m[16:]), e.Uint64(m[32:]), e.Uint64(m[40:])
		}
	}
	if s.pages > uint64(s.size/s.page) {
		return 0, 0, fmt.Errorf("%d pages in a file of %d bytes", s.pages, s.size)
	}
	return root, free, nil
}

// read reads a page with what overflows, and marks it as seen.
func (s *structure) read(id uint64) ([]byte, error) {
	if id < 2 || id >= s.pages {
		return nil, fmt.Errorf("page %d of %d", id, s.pages)
	}
	header := make([]byte, boltHeader)
	if _, err := s.file.ReadAt(header, int64(id)*s.page); err != nil {
		return nil, err
	}
	n := 1 + uint64(binary.NativeEndian.Uint32(header[12:]))
	if binary.NativeEndian.Uint64(header) != id || n > s.pages-id {
		return nil, fmt.Errorf("page %d calls itself %d and has %d pages", id, binary.NativeEndian.Uint64(header), n)
	}
	for k := id; k < id+n; k++ {
		if s.seen[k] {
			return nil, fmt.Errorf("page %d is used twice", k)
		}
		s.seen[k] = true
	}
	b := make([]byte, n*uint64(s.page))
	_, err := s.file.ReadAt(b, int64(id)*s.page)
	return b, err
}

func (s *structure) walk(id uint64, depth int) error {
	b, err := s.read(id)
	if err == nil {
		err = s.elements(b, depth)
	}
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks a branch or a leaf, and what it leads to.
func (s *structure) elements(b []byte, depth int) error {
	e := binary.NativeEndian
	flags, count := e.Uint16(b[8:]), uint64(e.Uint16(b[10:]))
	switch {
	case depth > boltMaxDepth:
		return fmt.Errorf("deeper than %d", boltMaxDepth)
	case flags != boltBranch && flags != boltLeaf:
		return fmt.Errorf("is of kind %#x", flags)
	case boltHeader+count*boltElement > uint64(len(b)):
		return fmt.Errorf("%d elements in %d bytes", count, len(b))
	}
	for i := range count {
		at := boltHeader + i*boltElement
		el := b[at : at+boltElement]
		if flags == boltBranch {
			if at+uint64(e.Uint32(el))+uint64(e.Uint32(el[4:])) > uint64(len(b)) {
				return fmt.Errorf("key %d lies outside", i)
			}
			if err := s.walk(e.Uint64(el[8:]), depth+1); err != nil {
				return err
			}
			continue
		}
		from := at + uint64(e.Uint32(el[4:])) + uint64(e.Uint32(el[8:]))
		to := from + uint64(e.Uint32(el[12:]))
		if to > uint64(len(b)) {
			return fmt.Errorf("value %d lies outside", i)
		}
		if kind := e.Uint32(el); kind == boltIsBucket {
			if err := s.bucket(b[from:to], depth+1); err != nil {
				return err
			}
		} else if kind != 0 {
			return fmt.Errorf("element %d is of kind %#x", i, kind)
		}
	}
	return nil
}

// bucket checks a leaf's value that is a bucket.
func (s *structure) bucket(b []byte, depth int) error {
	if len(b) < boltBucket {
		return fmt.Errorf("a bucket of %d bytes", len(b))
	}
	if root := binary.NativeEndian.Uint64(b); root != 0 {
		return s.walk(root, depth)
	}
	if b = b[boltBucket:]; len(b) < boltHeader {
		return fmt.Errorf("a page of %d bytes within a bucket", len(b))
	}
	return s.elements(b, depth)
}

// free checks that free pages are not in use.
func (s *structure) free(id uint64) error {
	b, err := s.read(id)
	if err != nil {
		return fmt.Errorf("freelist: %w", err)
	}
	e := binary.NativeEndian
	if flags := e.Uint16(b[8:]); flags != boltFreelist {
		return fmt.Errorf("freelist is of kind %#x", flags)
	}
	count, ids := uint64(e.Uint16(b[10:])), b[boltHeader:]
	if count == 0xffff {
		count, ids = e.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids))/8 {
		return fmt.Errorf("%d free pages in %d bytes", count, len(ids))
	}
	for i := range count {
		p := e.Uint64(ids[8*i:])
		if p < 2 || p >= s.pages || s.seen[p] {
			return fmt.Errorf("page %d is in use and free", p)
		}
		s.seen[p] = true
	}
	return nil
}
