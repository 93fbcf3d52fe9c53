package ipamsim

import "time"

// dice is a stream of chance that is a function of what it was made from, and cheap to make: each message has its own.
type dice uint64

// mix makes dice from numbers (splitmix64 of each in turn).
func mix(parts ...uint64) dice {
	d := dice(0x9e3779b97f4a7c15)
	for _, p := range parts {
		d ^= dice(p)
		d = dice(d.next())
	}
	return d
}

func (d *dice) next() uint64 {
	*d += 0x9e3779b97f4a7c15
	z := uint64(*d)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// n is a number in [0, n).
func (d *dice) n(n int) int {
	if n <= 1 {
		return 0
	}
	return int(d.next() % uint64(n))
}

func (d *dice) chance(p float64) bool { return p > 0 && float64(d.next()>>11)/(1<<53) < p }

// span is a duration in [0, most).
func (d *dice) span(most time.Duration) time.Duration { return time.Duration(d.n(int(most))) }

func pick[T any](d *dice, of ...T) T { return of[d.n(len(of))] }
