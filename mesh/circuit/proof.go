package circuit

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"weft/crypto/identity"
	"weft/crypto/tlv"
)

// The protocols of the port.
const (
	ALPN     = "weft/1"
	ALPNJoin = "weft-join/1"
)

// proofOID marks the X.509 extension with the proof of membership: a UUID-derived arc (2.25), so that nobody assigns it
// twice.
var proofOID = asn1.ObjectIdentifier{2, 25, 1908731215, 1}

var proofVersion = tlv.V(1, 0)

const (
	proofRoot        = 1
	proofCertificate = 2
)

// ErrNoProof says that the other end speaks TLS but showed no weft certificate for the key that it used.
var ErrNoProof = errors.New("no weft certificate")

// present makes the X.509 certificate that a member shows.
func present(key identity.Key, root ed25519.PublicKey, cert *identity.Certificate) (*tls.Certificate, error) {
	proof := tlv.AppendVersion(nil, proofVersion)
	proof = tlv.Append(proof, proofRoot, root)
	proof = tlv.Append(proof, proofCertificate, cert.Raw())
	template := &x509.Certificate{
		SerialNumber:    big.NewInt(1),
		Subject:         pkix.Name{CommonName: key.ID().String()},
		NotBefore:       time.Unix(0, 0), // nobody looks at dates
		NotAfter:        time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		ExtraExtensions: []pkix.Extension{{Id: proofOID, Value: proof}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key.Signer())
	if err != nil {
		return nil, fmt.Errorf("make X.509 certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key.Signer()}, nil
}

// proven takes the proof from what the other end showed. TLS has checked that it holds the key of the X.509
// certificate; the weft certificate must be for that same key. Its chain is not checked yet.
func proven(cs tls.ConnectionState) (root ed25519.PublicKey, cert *identity.Certificate, err error) {
	if len(cs.PeerCertificates) != 1 {
		return nil, nil, fmt.Errorf("%w: %d X.509 certificates, want 1", ErrNoProof, len(cs.PeerCertificates))
	}
	leaf := cs.PeerCertificates[0]
	key, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, nil, fmt.Errorf("%w: its key is not Ed25519", ErrNoProof)
	}
	var value []byte
	for _, e := range leaf.Extensions {
		if e.Id.Equal(proofOID) {
			value = e.Value
		}
	}
	if value == nil {
		return nil, nil, fmt.Errorf("%w: the extension is missing", ErrNoProof)
	}
	root, cert, err = parseProof(value)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNoProof, err)
	}
	if !cert.Public().Equal(key) {
		return nil, nil, fmt.Errorf("%w: it belongs to %s, not to the key that was used", ErrNoProof, cert.ID())
	}
	return root, cert, nil
}

func parseProof(b []byte) (ed25519.PublicKey, *identity.Certificate, error) {
	_, f, err := tlv.ParseVersioned("proof of membership", b, proofVersion)
	if err != nil {
		return nil, nil, err
	}
	r := tlv.NewReader(f)
	r.Require(proofRoot, proofCertificate)
	root := make(ed25519.PublicKey, ed25519.PublicKeySize)
	r.Copy(proofRoot, root)
	raw := r.Bytes(proofCertificate, identity.MaxItem)
	if err := r.Err(); err != nil {
		return nil, nil, fmt.Errorf("parse proof of membership: %w", err)
	}
	cert, err := identity.ParseCertificate(raw)
	if err != nil {
		return nil, nil, err
	}
	return root, cert, nil
}

// settings are what both protocols and both ends share.
func settings() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768},
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // of X.509 chains, names and dates: VerifyConnection checks ours instead
	}
}
