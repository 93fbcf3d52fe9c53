//go:build !linux

package sleeve

import (
	"fmt"

	"golang.org/x/net/bpf"

	"weft/router"
)

func (s *socket) filter(program []bpf.Instruction) error {
	if len(program) == 0 {
		return nil
	}
	return fmt.Errorf("set filter: %w", router.ErrUnsupported)
}
