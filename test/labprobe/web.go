package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

type nothing struct{}

func (nothing) String() string { return "stopped" }

// serve answers on every address that it is reached by, until it is told to end.
func serve(ctx context.Context, fs *flag.FlagSet, args []string) (fmt.Stringer, error) {
	web := fs.Int("http", 0, "port of the web page, 0 for none")
	sink := fs.Int("tcp", 0, "port of the TCP sink, 0 for none")
	echo := fs.Int("udp", 0, "port of the UDP echo, 0 for none")
	page := fs.String("page", "hello", "what the page says before the visitor's address")
	if err := parseFlags(fs, args, 0); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var fail firstError
	run := func(name string, port int, f func(context.Context, int) error) {
		if port == 0 {
			return
		}
		wg.Go(func() {
			if err := f(ctx, port); err != nil && ctx.Err() == nil {
				fail.set(fmt.Errorf("serve %s on port %d: %w", name, port, err))
				cancel()
			}
		})
	}
	run("http", *web, func(ctx context.Context, port int) error { return serveHTTP(ctx, port, *page) })
	run("tcp", *sink, serveSink)
	run("udp", *echo, serveEcho)
	<-ctx.Done()
	wg.Wait()
	return nothing{}, fail.err
}

type firstError struct {
	once sync.Once
	err  error
}

func (f *firstError) set(err error) { f.once.Do(func() { f.err = err }) }

func listen(ctx context.Context, port int) (net.Listener, error) {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return nil, err
	}
	fmt.Printf("listening on tcp %d\n", port) // tests wait for this line
	context.AfterFunc(ctx, func() { _ = l.Close() })
	return l, nil
}

func serveHTTP(ctx context.Context, port int, page string) error {
	l, err := listen(ctx, port)
	if err != nil {
		return err
	}
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = fmt.Fprintf(w, "%s, visitor from %s\n", page, host)
	})}
	defer srv.Close()
	return srv.Serve(l)
}

// serveSink reads and forgets, and tells the sender how much it got when the sender has closed its half.
func serveSink(ctx context.Context, port int) error {
	l, err := listen(ctx, port)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		wg.Go(func() {
			defer stop()
			defer c.Close()
			n, _ := io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, 256<<10))
			_, _ = fmt.Fprintln(c, n)
		})
	}
}

func serveEcho(ctx context.Context, port int) error {
	c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		return err
	}
	fmt.Printf("listening on udp %d\n", port)
	context.AfterFunc(ctx, func() { _ = c.Close() })
	_ = c.SetReadBuffer(4 << 20)
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // an ICMP error about an earlier answer
		}
		_, _ = c.WriteToUDPAddrPort(buf[:n], from)
	}
}

type page struct {
	URL    string  `json:"url"`
	Status int     `json:"status"`
	Body   string  `json:"body"`
	MS     float64 `json:"ms"`
	Error  string  `json:"error,omitempty"`
}

type pages []page

func (ps pages) String() string {
	var lines []string
	for _, p := range ps {
		switch {
		case p.Error != "":
			lines = append(lines, p.URL+": "+p.Error)
		default:
			lines = append(lines, fmt.Sprintf("%s: %d in %.1f ms: %s", p.URL, p.Status, p.MS, strings.TrimSpace(p.Body)))
		}
	}
	return strings.Join(lines, "\n")
}

func get(ctx context.Context, fs *flag.FlagSet, args []string) (fmt.Stringer, error) {
	wait := fs.Duration("w", 3*time.Second, "time for each page")
	if err := parseFlags(fs, args, 1); err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: *wait, Transport: &http.Transport{DisableKeepAlives: true}}
	results := make(pages, fs.NArg())
	var wg sync.WaitGroup
	for i, url := range fs.Args() {
		wg.Go(func() { results[i] = getOne(ctx, client, url) })
	}
	wg.Wait()
	for _, p := range results {
		if p.Status != http.StatusOK {
			return results, errLost
		}
	}
	return results, nil
}

func getOne(ctx context.Context, client *http.Client, url string) page {
	const most = 64 << 10
	p, start := page{URL: url}, time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		p.Error = err.Error()
		return p
	}
	resp, err := client.Do(req)
	if err != nil {
		p.Error = err.Error()
		return p
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		p.Error = err.Error()
		return p
	}
	p.Status, p.Body, p.MS = resp.StatusCode, string(b), float64(time.Since(start).Microseconds())/1000
	return p
}
