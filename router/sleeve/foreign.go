package sleeve

import (
	"fmt"
	"net/netip"
)

// minForeign is WireGuard's smallest message: a packet without content.
const minForeign = 32

// maxForeign is the highest of WireGuard's types, which begin at 1.
const maxForeign = 4

// isForeign knows WireGuard's messages: a type of 1 to 4 and three bytes of zero.
func isForeign(b []byte) bool {
	return len(b) >= minForeign && b[0] >= 1 && b[0] <= maxForeign && b[1]|b[2]|b[3] == 0
}

// SendForeign sends datagrams of size bytes each, back to back, the last may be shorter, through the weft port as they
// are: for WireGuard, which shares it.
func (e *Engine) SendForeign(run []byte, size int, to netip.AddrPort) error {
	sock := e.sockets.Load().to(to)
	if sock == nil {
		return fmt.Errorf("send to %s: %w", to, ErrNoSocket)
	}
	p := newPort(sock)
	for len(run) > 0 {
		n := min(len(run), size*max(1, min(maxSegments, maxSend/size)))
		if _, err := p.run(run[:n], size, to, 0); err != nil {
			return fmt.Errorf("send to %s: %w", to, err)
		}
		run = run[n:]
	}
	return nil
}
