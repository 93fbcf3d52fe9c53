package ipam

import "errors"

// Table names a kind of stored value.
type Table string

// The tables. New kinds are added at the end; a table that a build does not know is left as it is.
const (
	tableMeta   Table = "meta"   // metaFormat, metaIncarnation, metaStopped, metaPromise, metaRemoved
	tableGrant  Table = "grant"  // ring.ID -> the raw grant
	tableView   Table = "view"   // ring.ID -> the raw view record
	tableClaim  Table = "claim"  // IPv4 address -> claim
	tableRest   Table = "rest"   // IPv4 address -> nothing but a version: released, may not be given again at once
	tableHeard  Table = "heard"  // peer.ID -> the last start that it told us of
	tableServed Table = "served" // peer.ID -> the last request for space that it was given a block for
	tableRefuse Table = "refuse" // peer.ID -> the view in which this node promised to refuse what it writes
	tableTaken  Table = "taken"  // ring.ID -> nothing but a version: an own block that was taken over and cools
)

// Op is one change: put Value under Key, or delete Key when Value is nil.
type Op struct {
	Table Table
	Key   []byte
	Value []byte
}

// Store keeps the allocator's state. One Commit is one durable transaction: all of it or nothing. It is used by one
// goroutine at a time.
type Store interface {
	// Load yields every entry. The slices are valid only during the call of yield, whose error ends it.
	Load(yield func(table Table, key, value []byte) error) error
	// Commit makes the operations durable before it returns nil. After an error they are durable or not; Load tells.
	Commit(ops []Op) error
	Close() error
}

// ErrDamaged says that a store's file exists but makes no sense.
var ErrDamaged = errors.New("the address store is damaged")
