package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// maxReply bounds what a client reads: a ring of 2^17 blocks fits.
const maxReply = 64 << 20

// dialTimeout is short: a unix socket answers at once or its queue is full.
const dialTimeout = 3 * time.Second

// Client asks the daemon behind a socket. It is safe for concurrent use; each request has a connection of its own, so
// there is nothing to close.
type Client struct {
	path string
	http *http.Client
}

var _ Backend = (*Client)(nil)

// NewClient returns a client for the socket at path. It touches nothing.
func NewClient(path string) *Client {
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: dialTimeout}
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// Status asks how things are.
func (c *Client) Status(ctx context.Context) (Status, error) { return get[Status](ctx, c, "status") }

// Init makes a cluster.
func (c *Client) Init(ctx context.Context, r InitRequest) (InitReply, error) {
	return post[InitReply](ctx, c, "init", r)
}

// Join enters a cluster.
func (c *Client) Join(ctx context.Context, r JoinRequest) (JoinReply, error) {
	return post[JoinReply](ctx, c, "join", r)
}

// Leave leaves the cluster and stops the daemon.
func (c *Client) Leave(ctx context.Context, r LeaveRequest) (LeaveReply, error) {
	return post[LeaveReply](ctx, c, "leave", r)
}

// Down tells the daemon to stop; see Gone.
func (c *Client) Down(ctx context.Context) error {
	_, err := post[struct{}](ctx, c, "down", nil)
	return err
}

// TokenCreate makes an invitation.
func (c *Client) TokenCreate(ctx context.Context, r TokenRequest) (TokenReply, error) {
	return post[TokenReply](ctx, c, "tokens", r)
}

// TokenList lists invitations.
func (c *Client) TokenList(ctx context.Context) (Tokens, error) { return get[Tokens](ctx, c, "tokens") }

// TokenRevoke ends an invitation.
func (c *Client) TokenRevoke(ctx context.Context, id string) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, changeTimeout, nil, "tokens", id)
	return err
}

// Attach gives a network namespace an interface.
func (c *Client) Attach(ctx context.Context, r AttachRequest) (AttachReply, error) {
	return post[AttachReply](ctx, c, "attach", r)
}

// Detach takes it away.
func (c *Client) Detach(ctx context.Context, r DetachRequest) (DetachReply, error) {
	return post[DetachReply](ctx, c, "detach", r)
}

// PeerList lists the other members.
func (c *Client) PeerList(ctx context.Context) (Peers, error) { return get[Peers](ctx, c, "peers") }

// PeerShow tells all about one.
func (c *Client) PeerShow(ctx context.Context, peer string) (PeerDetail, error) {
	return get[PeerDetail](ctx, c, "peers", peer)
}

// PeerRemove ends the membership of peers.
func (c *Client) PeerRemove(ctx context.Context, r RemoveRequest) (RemoveReply, error) {
	return call[RemoveReply](ctx, c, http.MethodPost, changeTimeout, r, "peers", "remove")
}

// IssuerList lists who may admit members.
func (c *Client) IssuerList(ctx context.Context) (Issuers, error) {
	return get[Issuers](ctx, c, "issuers")
}

// IssuerAdd lets a member admit others.
func (c *Client) IssuerAdd(ctx context.Context, peer string) error {
	_, err := call[struct{}](ctx, c, http.MethodPut, changeTimeout, nil, "issuers", peer)
	return err
}

// IssuerRemove ends that.
func (c *Client) IssuerRemove(ctx context.Context, peer string) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, changeTimeout, nil, "issuers", peer)
	return err
}

// IPList lists the addresses of attached pods.
func (c *Client) IPList(ctx context.Context) (Claims, error) {
	return get[Claims](ctx, c, "ip", "claims")
}

// IPRing lists who owns what.
func (c *Client) IPRing(ctx context.Context) (Ring, error) { return get[Ring](ctx, c, "ip", "ring") }

// IPClaim keeps an address by hand.
func (c *Client) IPClaim(ctx context.Context, r IPClaimRequest) (IPClaimReply, error) {
	return call[IPClaimReply](ctx, c, http.MethodPost, changeTimeout, r, "ip", "claim")
}

// IPRelease gives up an address that was kept by hand.
func (c *Client) IPRelease(ctx context.Context, r IPReleaseRequest) (IPReleaseReply, error) {
	return call[IPReleaseReply](ctx, c, http.MethodPost, changeTimeout, r, "ip", "release")
}

// Doctor runs the daemon's probes.
func (c *Client) Doctor(ctx context.Context, r DoctorRequest) (Doctor, error) {
	return post[Doctor](ctx, c, "doctor", r)
}

// Graph asks all members how they reach each other.
func (c *Client) Graph(ctx context.Context) (Graph, error) { return get[Graph](ctx, c, "graph") }

// Report collects what helps to understand a fault.
func (c *Client) Report(ctx context.Context) (Report, error) {
	return call[Report](ctx, c, http.MethodGet, changeTimeout, nil, "report")
}

// Ping probes a peer and calls reply as answers come in.
func (c *Client) Ping(ctx context.Context, r PingRequest, reply func(PingReply) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, r, "ping")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var line pingLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("decode reply: %w", err)
		}
		if line.Error != nil {
			return fromServer(line.Error)
		}
		if line.PingReply == nil {
			continue
		}
		if err := reply(*line.PingReply); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return c.broken(ctx, err)
	}
	return nil
}

// Gone waits until the daemon has ended, which is some time after it has closed its socket: it holds a lock until it
// has stopped everything else.
func (c *Client) Gone(ctx context.Context) error {
	f, err := os.Open(lockPath(c.path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for the end of the daemon: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if held, err := locked(f); err != nil || !held {
			return err
		}
		select {
		case <-ctx.Done():
			return &Error{Code: Timeout, Message: "the daemon is still running", Hint: "Its log says what it waits for"}
		case <-tick.C:
		}
	}
}

func get[Reply any](ctx context.Context, c *Client, path ...string) (Reply, error) {
	return call[Reply](ctx, c, http.MethodGet, readTimeout, nil, path...)
}

func post[Reply any](ctx context.Context, c *Client, path string, body any) (Reply, error) {
	return call[Reply](ctx, c, http.MethodPost, changeTimeout, body, path)
}

// call sends one request. The client waits a little longer than the server works, so that the server's words about a
// deadline win over the client's.
func call[Reply any](ctx context.Context, c *Client, method string, limit time.Duration, body any, path ...string) (Reply, error) {
	var v Reply
	ctx, cancel := context.WithTimeout(ctx, limit+writeTimeout)
	defer cancel()
	resp, err := c.do(ctx, method, body, path...)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return v, c.broken(ctx, err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("decode answer of the daemon: %w", err)
	}
	return v, nil
}

// do returns a response whose status is OK; its body is the caller's to close.
func (c *Client) do(ctx context.Context, method string, body any, path ...string) (*http.Response, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
	}
	// The host is not used: the dialer knows only the socket.
	var target strings.Builder
	target.WriteString("http://weft/v1")
	for _, p := range path {
		target.WriteString("/" + url.PathEscape(p))
	}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var p problem
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	if err := json.Unmarshal(b, &p); err != nil || p.Error == nil {
		return nil, &Error{Code: Failed, Message: "what answers at " + c.path + " is not weft", Cause: resp.Status}
	}
	return nil, fromServer(p.Error)
}

// fromServer keeps Unreachable for the one thing that it says on the command line: there is no daemon.
func fromServer(e *Error) error {
	if e.Code == Unreachable {
		e.Code = Failed
	}
	return e
}

// broken explains why there was no answer.
func (c *Client) broken(ctx context.Context, err error) error {
	start := "Start it with: sudo weft up"
	if os.Geteuid() == 0 {
		start = "Start it with: weft up"
	}
	var op *net.OpError
	dialing := errors.As(err, &op) && op.Op == "dial"
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case errors.Is(err, fs.ErrPermission):
		return &Error{Code: Denied, Message: "you may not talk to weft", Cause: c.path + ": permission denied"}
	case dialing && errors.Is(err, fs.ErrNotExist):
		return &Error{Code: Unreachable, Message: "the daemon is not running here", Cause: "no socket at " + c.path, Hint: start}
	case dialing && errors.Is(err, syscall.ECONNREFUSED):
		return &Error{Code: Unreachable, Message: "the daemon is not running here", Cause: "nobody listens at " + c.path, Hint: start}
	case dialing:
		return &Error{Code: Unreachable, Message: "cannot reach weft at " + c.path, Cause: cause(err), Hint: start}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: Timeout, Message: "weft did not answer in time", Hint: "Its log says what it is doing"}
	}
	return &Error{Code: Unreachable, Message: "weft went away before it answered", Cause: cause(err), Hint: "Its log says why"}
}
