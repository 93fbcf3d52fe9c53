package join

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/crypto/token"
	"weft/mesh/circuit"
	"weft/mesh/peer"
)

// Deadlines of the joiner.
const (
	ReachTimeout = 5 * time.Second // to a seed: TCP and TLS
	JoinTimeout  = time.Minute     // from the request to the end of the welcome
)

// Config is what a machine joins with.
type Config struct {
	Token string       // as typed: weft1…
	Key   identity.Key // the node's own, stored before it joins: asking again with it costs no use
	Name  string       // of the node; may be empty
	Build string       // of weft, for the sponsor's log

	// Dial makes the raw connection to a seed; nil means TCP.
	Dial func(context.Context, netip.AddrPort) (net.Conn, error)
}

// Result is what a new member starts with. All of it was verified against the root that the token names, but for Records
// and Ring, which carry signatures of their own that mesh and ipam check.
type Result struct {
	Cluster     *identity.Cluster
	Certificate *identity.Certificate // of this node
	Items       [][]byte              // the roster: signed items, those of kinds unknown to this build included
	Records     []byte                // snapshot of the members' records
	Ring        []byte                // snapshot of the address ring

	Sponsor  peer.ID        // the member that was asked
	Endpoint netip.AddrPort // where it was reached
	Observed netip.AddrPort // where it sees this node; zero when unknown
	Build    string         // of weft there
}

// Join asks the seeds of a token in turn until one has an answer. A refusal that another seed would repeat ends it at
// once. The error is an *Error, or the context's.
func Join(ctx context.Context, cfg Config) (*Result, error) {
	t, err := token.Parse(cfg.Token)
	if err != nil {
		if e, ok := errors.AsType[*token.Error](err); ok {
			return nil, &Error{Code: e.Code, Sentence: e.Sentence, Cause: e.Cause, Hint: e.Hint}
		}
		return nil, err
	}
	key, err := t.Key()
	if err != nil {
		return nil, err
	}
	return enter(ctx, cfg, t, key)
}

// Return is Join for a node that was removed for its silence and comes back as another: in place of the token it has its
// former key, which the removal made good for one join, and seeds that it remembers. Token is not used.
func Return(ctx context.Context, cfg Config, former identity.Key, root identity.Fingerprint, seeds []token.Seed) (*Result, error) {
	return enter(ctx, cfg, token.Token{Root: root, Seeds: seeds}, former)
}

func enter(ctx context.Context, cfg Config, t token.Token, tokenKey identity.Key) (*Result, error) {
	j := joiner{cfg: cfg, token: t, tokenKey: tokenKey}
	if j.cfg.Dial == nil {
		j.cfg.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", to.String())
		}
	}
	var err error
	if j.application, err = identity.Apply(t.Root, cfg.Key, j.tokenKey, cfg.Name); err != nil {
		return nil, err
	}
	var unreachable []error
	var told *Error // the most telling answer so far
	for _, seed := range t.Seeds {
		result, err := j.ask(ctx, seed)
		if err == nil {
			return result, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("join: %w", context.Cause(ctx))
		}
		var e *Error
		switch {
		case !errors.As(err, &e):
			unreachable = append(unreachable, err)
		case e.final():
			return nil, e
		case told == nil || told.Code == CodeForeign || told.Code == CodeImpostor:
			told = e
		}
	}
	if told != nil {
		return nil, told
	}
	return nil, errUnreachable(unreachable)
}

// final reports whether other seeds would say the same.
func (e *Error) final() bool {
	switch e.Code {
	case CodeExpired, CodeUsedUp, CodeRevoked, CodeRemoved, CodeReturned, CodeVersion:
		return true
	}
	return false
}

type joiner struct {
	cfg         Config
	token       token.Token
	tokenKey    identity.Key
	application *identity.Application
}

// ask runs the protocol with one seed. An error that is no *Error says that the seed could not be talked to.
func (j *joiner) ask(ctx context.Context, seed token.Seed) (*Result, error) {
	reach, cancel := context.WithTimeout(ctx, ReachTimeout)
	defer cancel()
	raw, err := j.cfg.Dial(reach, seed.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", seed.Endpoint, cause(reach, err))
	}
	defer raw.Close()

	result := &Result{Endpoint: seed.Endpoint}
	var root ed25519.PublicKey
	conn, err := circuit.DialJoin(reach, raw, func(r ed25519.PublicKey, cert *identity.Certificate) error {
		switch {
		case identity.FingerprintOf(r) != j.token.Root:
			return errForeign(seed.Endpoint)
		case !seed.Is(cert.ID()):
			return errImpostor(seed.Endpoint, "it is "+cert.ID().String())
		}
		root, result.Sponsor = r, cert.ID()
		return nil
	})
	if err != nil {
		if e, ok := errors.AsType[*Error](err); ok {
			return nil, e
		}
		for _, lie := range []error{circuit.ErrNoProof, identity.ErrSignature, identity.ErrMalformed, identity.ErrRoot} {
			if errors.Is(err, lie) {
				return nil, errImpostor(seed.Endpoint, err.Error())
			}
		}
		return nil, fmt.Errorf("%s: %w", seed.Endpoint, cause(reach, err))
	}
	ctx, cancel = context.WithTimeout(ctx, JoinTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { raw.Close() })()

	q := request{application: j.application, build: j.cfg.Build}
	if err := q.sign(conn.ConnectionState(), j.cfg.Key, j.tokenKey); err != nil {
		return nil, err
	}
	if err := writeFrame(conn, frameRequest, q.append(nil)); err != nil {
		return nil, fmt.Errorf("%s: %w", seed.Endpoint, cause(ctx, err))
	}
	if err := j.receive(conn, root, result); err != nil {
		if e, ok := errors.AsType[*Error](err); ok {
			return nil, e
		}
		return nil, fmt.Errorf("%s: %w", seed.Endpoint, cause(ctx, err))
	}
	return result, nil
}

// receive reads the answer and checks it.
func (j *joiner) receive(conn io.Reader, root ed25519.PublicKey, result *Result) error {
	total := 0
	for {
		kind, body, err := readFrame(conn, maxFrame)
		if err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		if total += len(body); total > maxWelcome {
			return errInvalid(fmt.Errorf("an answer of more than %d bytes", maxWelcome))
		}
		if result.Certificate == nil && kind != frameWelcome && kind != frameRefusal {
			return errInvalid(errors.New("an answer that does not begin with a welcome"))
		}
		switch kind {
		case frameRefusal:
			e, err := parseError(body)
			if err != nil {
				return errInvalid(err)
			}
			return e
		case frameWelcome:
			w, err := parseWelcomed(body)
			if err == nil {
				err = j.check(root, w)
			}
			if err != nil {
				return errInvalid(err)
			}
			result.Cluster, result.Certificate, result.Observed = w.cluster, w.certificate, w.observed
			result.Build = w.build
		case frameItems:
			items, err := parseItems(body)
			if err == nil {
				err = checkItems(root, items)
			}
			if err != nil {
				return errInvalid(err)
			}
			result.Items = append(result.Items, items...)
		case frameRecords:
			result.Records = append(result.Records, body...)
		case frameRing:
			result.Ring = append(result.Ring, body...)
		case frameEnd:
			return nil
		}
		// Frames of other types were added by a newer weft, for newer joiners.
	}
}

// check holds a welcome against the token's root and our keys.
func (j *joiner) check(root ed25519.PublicKey, w *welcomed) error {
	if err := w.cluster.Verify(root); err != nil {
		return err
	}
	if err := w.certificate.Verify(root); err != nil {
		return err
	}
	if !w.certificate.Public().Equal(j.cfg.Key.Public()) {
		return errors.New("the certificate is for another node")
	}
	return nil
}

func checkItems(root ed25519.PublicKey, items [][]byte) error {
	for _, raw := range items {
		it, err := identity.Parse(raw)
		var newer *tlv.VersionError
		if errors.Is(err, identity.ErrKind) || errors.As(err, &newer) {
			continue // for those who can read it; the mesh keeps it apart
		}
		if err == nil {
			err = it.Verify(root)
		}
		if err != nil {
			return fmt.Errorf("check roster: %w", err)
		}
	}
	return nil
}

// cause prefers the context's reason over the error that its end provoked.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
