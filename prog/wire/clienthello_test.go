package wire

import (
	"bytes"
	"crypto/tls"
	"net"
	"testing"
)

// helloOf is what a client sends first.
func helloOf(t testing.TB, protocols ...string) []byte {
	t.Helper()
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(here, &tls.Config{ServerName: "x", NextProtos: protocols}).Handshake()
	}()
	buf := make([]byte, maxHelloLookedAt)
	n, err := there.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, enough := looksForData(buf[:n]); enough {
			break
		}
		m, err := there.Read(buf[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	there.Close()
	here.Close()
	<-done
	return buf[:n]
}

func TestHellosAreTold(t *testing.T) {
	for name, c := range map[string]struct {
		hello []byte
		want  bool
	}{
		"ours":               {helloOf(t, dataProtocol), true},
		"ours among others":  {helloOf(t, "h2", dataProtocol), true},
		"weftd's":            {helloOf(t, "weft/1"), false},
		"one that begins so": {helloOf(t, dataProtocol+"0"), false},
		"none":               {helloOf(t), false},
		"no TLS":             {[]byte("GET / HTTP/1.1\r\n"), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got, enough := looksForData(c.hello); got != c.want || !enough {
				t.Errorf("%v, enough %v", got, enough)
			}
			if c.hello[0] != recordHandshake {
				return
			}
			for n := range c.hello {
				if _, enough := looksForData(c.hello[:n]); enough {
					t.Fatalf("%d of %d bytes are enough", n, len(c.hello))
				}
			}
		})
	}
}

// FuzzHello: whatever is sent first to the port is sorted without a panic, and more bytes never change an answer.
func FuzzHello(f *testing.F) {
	ours := helloOf(f, dataProtocol)
	f.Add(ours)
	f.Add(helloOf(f, "weft/1"))
	f.Add(ours[:100])
	f.Add([]byte{recordHandshake, 3, 1, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		data, enough := looksForData(b)
		if data && !enough {
			t.Error("known before it is enough")
		}
		if !enough {
			return
		}
		if again, _ := looksForData(append(bytes.Clone(b), "more"...)); again != data {
			t.Error("more bytes change the answer")
		}
	})
}
