package join

import (
	"crypto/tls"
	"fmt"

	"weft/crypto/identity"
)

// The proof binds a request to one TLS session: both keys sign the session's exporter value and the application. Someone
// who replays the request elsewhere, or sits between two sessions, has another value.
const (
	exporterLabel = "EXPORTER-weft-join"
	exporterSize  = 32
	domainNode    = "weft join session"
	domainToken   = "weft join session by token"
)

func sessionStatement(cs tls.ConnectionState, a *identity.Application) ([]byte, error) {
	b, err := cs.ExportKeyingMaterial(exporterLabel, nil, exporterSize)
	if err != nil {
		return nil, fmt.Errorf("export from session: %w", err)
	}
	return append(b, a.Raw()...), nil
}

// sign proves on this session that the joiner holds both keys.
func (q *request) sign(cs tls.ConnectionState, node, token identity.Key) error {
	msg, err := sessionStatement(cs, q.application)
	if err != nil {
		return err
	}
	q.byNode, q.byToken = node.Sign(domainNode, msg), token.Sign(domainToken, msg)
	return nil
}

// verify checks what sign made.
func (q *request) verify(cs tls.ConnectionState) error {
	msg, err := sessionStatement(cs, q.application)
	if err != nil {
		return err
	}
	if !identity.Verify(q.application.Node, domainNode, msg, q.byNode) ||
		!identity.Verify(q.application.Token, domainToken, msg, q.byToken) {
		return fmt.Errorf("verify join request: not made for this session: %w", identity.ErrSignature)
	}
	return nil
}
