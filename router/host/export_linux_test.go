package host

import "errors"

// WithoutPrograms makes h take the kernel for one that has no programs before devices.
func (h *Host) WithoutPrograms() {
	h.gates.tried, h.gates.cannot = true, errors.New("the test wants none")
}
