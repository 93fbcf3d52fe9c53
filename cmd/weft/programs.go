package main

import (
	"context"

	"weft/prog/weftd"
	"weft/prog/wire"
)

// programs are the real ones.
func programs() entries {
	return entries{
		up:     weftd.Run,
		init:   weftd.Init,
		down:   weftd.Down,
		doctor: weftd.Doctor,
		guard:  weftd.Guard,
		wire: func(ctx context.Context, socket, build string) error {
			return wire.Main(ctx, wire.ServerOptions{Socket: socket, Version: build})
		},
		beside: func(socket string) error { return wire.Beside(wire.ServerOptions{Socket: socket}) },
	}
}
