//go:build !linux

package sleeve

import (
	"fmt"

	"weft/router"
)

func (s *socket) dropped() (uint32, error) {
	return 0, fmt.Errorf("read drops of socket: %w", router.ErrUnsupported)
}
