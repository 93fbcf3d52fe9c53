package control

import (
	"net"
	"sync"
)

// door accepts connections, finds out who is there, and keeps the number of those inside bounded. Whoever finds it full
// is turned away at once: nobody has to wait for anybody who keeps a connection and says nothing.
type door struct {
	*net.UnixListener
	gid   int64
	quota quota
}

func newDoor(l *net.UnixListener, gid int64) *door { return &door{l, gid, newQuota(maxConns)} }

// admittedConn is a connection of a caller that is known.
type admittedConn struct {
	net.Conn
	access access
	leave  func()
}

// Accept never returns a connection without its caller.
func (d *door) Accept() (net.Conn, error) {
	for {
		conn, err := d.AcceptUnix()
		if err != nil {
			return nil, err
		}
		a := accessNone
		if who, err := callerOf(conn); err == nil {
			a = judge(who, d.gid)
		}
		release, ok := d.quota.take(a)
		if !ok {
			conn.Close()
			continue
		}
		return &admittedConn{Conn: conn, access: a, leave: sync.OnceFunc(release)}, nil
	}
}

// Close gives the place back.
func (c *admittedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
