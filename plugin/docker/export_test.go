package docker

import "context"

// Reclaim is the part of Run that needs no socket.
func (p *Plugin) Reclaim(ctx context.Context) { p.reclaim(ctx) }

// Listen tries a socket.
func Listen(ctx context.Context, path string) error {
	s, err := listen(ctx, path)
	if err != nil {
		return err
	}
	defer s.remove()
	return s.listener.Close()
}
