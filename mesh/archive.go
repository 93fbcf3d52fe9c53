package mesh

// Appender is a Store that can add to a value without writing all of it again. The roster uses it where the store has it:
// with a thousand members it would otherwise write most of a megabyte for each certificate.
type Appender interface {
	Store
	// Append adds to a value that has size bytes; another size is an error. When it returns nil, the addition survives a
	// crash; after an error, or a crash before, any first part of it may be there.
	Append(name string, size int, b []byte) error
}

// archiveSlack is how much of what is stored may be outdated, beyond as much as is not, before all is written anew.
const archiveSlack = 64 << 10

// archive is the roster in the store: a list of items that grows at its end, and is written anew when it has outdated
// ones. Those need no mark: who reads the list chooses among items as it does when they arrive. What a crash leaves of
// the last item ends the list; it was shown to nobody. A list that is not good to its end is written anew before
// anything follows. The roster's write lock guards it.
type archive struct {
	store Store
	size  int // bytes, all good; 0: nothing is stored, or not all of that is good
}

// keep makes what is to be added survive a crash. All that is not outdated has so many bytes with it, and is made by
// snapshot.
func (a *archive) keep(add []entry, all int, snapshot func() []byte) error {
	size := a.size
	a.size = 0 // until it is known again
	if log, ok := a.store.(Appender); ok && size > 0 {
		var b []byte
		for _, e := range add {
			b = appendItem(b, e.raw)
		}
		if size+len(b) <= 2*all+archiveSlack && log.Append(storeRoster, size, b) == nil {
			a.size = size + len(b)
			return nil
		}
	}
	b := snapshot()
	if err := a.store.Save(storeRoster, b); err != nil {
		return err
	}
	a.size = len(b)
	return nil
}

// found takes notice of what was stored, and whether it was good.
func (a *archive) found(saved []byte, err error) {
	if err == nil && len(saved) > 0 && saved[0] == byte(listVersion) {
		a.size = len(saved)
	}
}
