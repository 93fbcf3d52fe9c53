package weftd

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"runtime"
)

// kernelRelease is what uname says, for a report.
func kernelRelease() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		b = []byte(runtime.GOOS)
	}
	return string(bytes.TrimSpace(b)) + " " + runtime.GOARCH
}

// show is the configuration as text by key, the token blotted out.
func (c Config) show() json.RawMessage {
	values := map[string]string{}
	for _, s := range Settings() {
		values[s.Key] = s.Get(c)
	}
	b, err := json.Marshal(values)
	if err != nil {
		return nil
	}
	return b
}

func dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", to.String())
}
