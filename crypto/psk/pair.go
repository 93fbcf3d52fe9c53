package psk

// Pair holds the secrets of one peer: the current one and the one before, because the two ends never change at the same
// instant. It is a value without lock; its owner guards it.
type Pair struct {
	current, previous Secret
}

// Rotate makes s the current secret. Rotating to the current one again changes nothing, so that a repeated agreement does
// not push out the previous secret.
func (p *Pair) Rotate(s Secret) {
	if s.IsZero() || s.Equal(p.current) {
		return
	}
	p.current, p.previous = s, p.current
}

// Current is the newest secret; zero when none was agreed.
func (p *Pair) Current() Secret { return p.current }

// Previous is the one before; zero when there is none.
func (p *Pair) Previous() Secret { return p.previous }

// List is what there is, newest first.
func (p *Pair) List() []Secret {
	var list []Secret
	for _, s := range [...]Secret{p.current, p.previous} {
		if !s.IsZero() {
			list = append(list, s)
		}
	}
	return list
}

// Find is the secret of a name.
func (p *Pair) Find(id ID) (Secret, bool) {
	for _, s := range p.List() {
		if s.ID() == id {
			return s, true
		}
	}
	return Secret{}, false
}

// Forget drops the previous secret, once both ends have been seen to use the current one.
func (p *Pair) Forget() { p.previous = Secret{} }
