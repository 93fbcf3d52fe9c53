//go:build !linux

package main

// deepen asks for readBuffer bytes for a socket.
func deepen(conn any) { askForBuffer(conn) }
