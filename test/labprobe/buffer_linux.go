package main

import "syscall"

// deepen gives a socket readBuffer bytes, whatever the machine allows to everybody: the lab's pods belong to root.
func deepen(conn any) {
	if c, ok := conn.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, readBuffer)
			})
			if err == nil {
				return
			}
		}
	}
	askForBuffer(conn)
}
