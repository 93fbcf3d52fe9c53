package weftd

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"weft/crypto/identity"
)

// stateDir is the node's folder, 0700. Each file is written whole: to a temporary name, synced, renamed, and the folder
// synced, so that a crash leaves the old file or the new one; the roster grows at its end, too. The ring and the claims
// live in a database of their own (ipam's); what is here changes with membership, a few times a day.
//
//	identity.key   this life of the node (PEM, Ed25519)      root.key    the cluster's root key, where it is held
//	clients.key, clients   key for clients from outside, and who they are
//	noise.key, wireguard.key   of the transports (PEM, X25519)   wire.epoch  how many times a wire was given an identity
//	membership     the cluster, this node's certificate      roster, records, self   what gossip taught and was told
//	join-promises  nodes that this one agreed to admit       weft.db     ring and claims
//	silence        how long members were not heard           identity.next, weft.db.next, reborn   see rebirth.go
//	docker.json    Docker's networks and containers          docker-peers   those of other machines
//	sysctls        what the machine had before               lock        held by the running daemon
//	wire.sock, wire.log   of the data-plane process
type stateDir struct {
	path string
	lock *os.File
}

// The names of the files.
const (
	fileIdentity   = "identity.key"
	fileRoot       = "root.key"
	fileNoise      = "noise.key"
	fileWireGuard  = "wireguard.key"
	fileClientKey  = "clients.key"
	fileClients    = "clients"
	fileWireEpoch  = "wire.epoch"
	fileMembership = "membership"
	filePromises   = "join-promises" // the join's, like the three below the mesh's
	fileRoster     = "roster"
	fileRecords    = "records"
	fileSelf       = "self"
	fileSilence    = "silence"
	fileDocker     = "docker.json"
	fileSegments   = "docker-peers"
	fileUndo       = "sysctls"
	fileDB         = "weft.db"
	fileLock       = "lock"
	fileWireSocket = "wire.sock"
	fileWireLog    = "wire.log"

	fileNextIdentity = "identity.next"
	fileNextDB       = "weft.db.next"
	fileReborn       = "reborn"
)

// life lists the files that belong to one life of the node, and rest those that stay when it leaves.
func stateFiles() (life, rest []string) {
	return []string{
			fileMembership, fileIdentity, fileRoot, fileNoise, fileWireGuard, fileClientKey, fileClients, fileWireEpoch, filePromises, fileDB, fileRoster, fileRecords, fileSelf,
			fileDocker, fileSegments,
			fileSilence, fileNextIdentity, fileNextDB, fileReborn,
		},
		[]string{fileUndo, fileWireLog, fileWireSocket, fileLock}
}

// errNoState says that a file was never written.
var errNoState = fs.ErrNotExist

// openState makes the folder if needed and takes its lock, so that two daemons never share one life.
func openState(path string) (*stateDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, stateError(path, "make", err)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return nil, stateError(path, "close to others", err)
	}
	f, err := os.OpenFile(filepath.Join(path, fileLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, stateError(path, "lock", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case err == nil:
		s := &stateDir{path: path, lock: f}
		if err = s.sweep(); err == nil {
			return s, nil
		}
	case errors.Is(err, syscall.EWOULDBLOCK):
		err = &stateInUseError{path}
	default:
		err = stateError(path, "lock", err)
	}
	return nil, errors.Join(err, f.Close())
}

// sweep removes what a crash left half written: it may hold a key.
func (s *stateDir) sweep() error {
	found, err := os.ReadDir(s.path)
	if err != nil {
		return stateError(s.path, "list", err)
	}
	var half []string
	for _, e := range found {
		if e.Name()[0] == '.' && isStateFile(e.Name()) {
			half = append(half, e.Name())
		}
	}
	if len(half) == 0 {
		return nil
	}
	return s.remove(half...)
}

// stateInUseError says that another daemon holds the lock.
type stateInUseError struct{ path string }

func (e *stateInUseError) Error() string {
	return fmt.Sprintf("state directory %s is in use by another weft", e.path)
}

func (s *stateDir) close() error { return s.lock.Close() }

func (s *stateDir) file(name string) string { return stateFile(s.path, name) }

func stateFile(dir, name string) string { return filepath.Join(dir, name) }

// read returns a file's bytes; errNoState when it was never written.
func (s *stateDir) read(name string) ([]byte, error) {
	b, err := os.ReadFile(s.file(name))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return b, nil
}

// write replaces a file durably; it is 0600 from its first byte on.
func (s *stateDir) write(name string, b []byte) error {
	f, err := os.CreateTemp(s.path, "."+name+".*")
	if err != nil {
		return fmt.Errorf("write state %s: %w", name, err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), s.file(name))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write state %s: %w", name, err), os.Remove(f.Name()))
	}
	return s.sync()
}

// remove deletes files that may be missing.
func (s *stateDir) remove(names ...string) error {
	var errs []error
	for _, name := range names {
		if err := os.Remove(s.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove state: %w", err))
		}
	}
	return errors.Join(append(errs, s.sync())...)
}

func (s *stateDir) sync() error {
	d, err := os.Open(s.path)
	if err != nil {
		return fmt.Errorf("sync state directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// forget wipes this life: what is left is a folder as before the first start, except for logs, and for the root key of a
// cluster that lives on without this node: that is kept under the cluster's name.
func (s *stateDir) forget(keepRoot string) error {
	var kept error
	if keepRoot != "" {
		if kept = os.Rename(s.file(fileRoot), s.file(keepRoot)); kept != nil {
			return stateError(s.path, "keep the root key in", kept)
		}
	}
	life, _ := stateFiles()
	return s.remove(life...)
}

// keptRoot is what the root key of a cluster that this node left is called.
func keptRoot(c *identity.Cluster) string { return fileRoot + "." + clusterName(c)[:8] }

// purge removes all that is weft's, and the folder. What is not weft's stays, the folder with it, and is named.
func (s *stateDir) purge() error {
	found, err := os.ReadDir(s.path)
	if err != nil {
		return stateError(s.path, "list", err)
	}
	var errs []error
	var foreign []string
	for _, e := range found {
		if !isStateFile(e.Name()) {
			foreign = append(foreign, e.Name())
		} else if err := os.Remove(s.file(e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove state: %w", err))
		}
	}
	if len(foreign) > 0 {
		errs = append(errs, fmt.Errorf("%s stays, for what is in it is not weft's: %s", s.path, strings.Join(foreign, ", ")))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	// A mount point stays, empty, and so does what systemd made for the daemon in a file system that is read-only to it.
	if err := os.Remove(s.path); err != nil && !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.EROFS) {
		return stateError(s.path, "remove", err)
	}
	return nil
}

// isStateFile knows weft's files by their names, with those that a crash left half written and what the wire keeps beside
// its socket.
func isStateFile(name string) bool {
	life, rest := stateFiles()
	for _, known := range append(life, rest...) {
		if name == known || strings.HasPrefix(name, "."+known+".") || strings.HasPrefix(name, known+".") {
			return true
		}
	}
	return strings.HasPrefix(name, ".undo-")
}

// key reads an Ed25519 key.
func (s *stateDir) key(name string) (identity.Key, error) {
	b, err := s.read(name)
	if err != nil {
		return identity.Key{}, err
	}
	key, err := parsePEM(b)
	if err != nil {
		return identity.Key{}, fmt.Errorf("read %s: %w", s.file(name), err)
	}
	k, ok := key.(ed25519.PrivateKey)
	if !ok {
		return identity.Key{}, fmt.Errorf("read %s: is a %T, want Ed25519", s.file(name), key)
	}
	return identity.ParseKey(k.Seed())
}

// foreignRootError says that the root key in the folder is of another cluster: an attempt to make one has left it, or
// somebody has put it there.
type foreignRootError struct{ path string }

func (e *foreignRootError) Error() string {
	return e.path + " is the root key of another cluster"
}

// rootOf reads the root key of a cluster; the zero Key when it is not held here.
func (s *stateDir) rootOf(c *identity.Cluster) (identity.Key, error) {
	root, err := s.key(fileRoot)
	switch {
	case errors.Is(err, errNoState):
		return identity.Key{}, nil
	case err == nil && !root.Public().Equal(c.Root):
		return identity.Key{}, &foreignRootError{s.file(fileRoot)}
	}
	return root, err
}

// keyOrNew reads an Ed25519 key, or makes and stores one.
func (s *stateDir) keyOrNew(name string) (identity.Key, error) {
	k, err := s.key(name)
	if !errors.Is(err, errNoState) {
		return k, err
	}
	if k, err = identity.NewKey(); err != nil {
		return identity.Key{}, err
	}
	return k, s.writeKey(name, ed25519.NewKeyFromSeed(k.Bytes()))
}

// Load and Save make the folder the mesh's store; a name is a file.
func (s *stateDir) Load(name string) ([]byte, error) {
	b, err := s.read(name)
	if errors.Is(err, errNoState) {
		return nil, nil
	}
	return b, err
}

// Save replaces a value durably.
func (s *stateDir) Save(name string, b []byte) error { return s.write(name, b) }

// Append adds to a value that has size bytes, durably; see mesh.Appender.
func (s *stateDir) Append(name string, size int, b []byte) error {
	f, err := os.OpenFile(s.file(name), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("add to state %s: %w", name, err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() != int64(size) {
		err = fmt.Errorf("it has %d bytes, not %d", info.Size(), size)
	}
	if err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("add to state %s: %w", name, err)
	}
	return nil
}

// noiseKey reads the sleeve's key, or makes and stores one.
func (s *stateDir) noiseKey() (*ecdh.PrivateKey, error) { return s.x25519(fileNoise) }

// wireGuardKey reads the key of the WireGuard devices, or makes and stores one.
func (s *stateDir) wireGuardKey() (*ecdh.PrivateKey, error) { return s.x25519(fileWireGuard) }

// clientKey reads the key that clients from outside know, or makes and stores one.
func (s *stateDir) clientKey() (*ecdh.PrivateKey, error) { return s.x25519(fileClientKey) }

func (s *stateDir) x25519(name string) (*ecdh.PrivateKey, error) {
	b, err := s.read(name)
	if errors.Is(err, errNoState) {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make %s: %w", name, err)
		}
		return k, s.writeKey(name, k)
	}
	if err != nil {
		return nil, err
	}
	key, err := parsePEM(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.file(name), err)
	}
	k, ok := key.(*ecdh.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read %s: is a %T, want X25519", s.file(name), key)
	}
	return k, nil
}

// writeKey stores a private key as PKCS #8 in PEM.
func (s *stateDir) writeKey(name string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return s.write(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func parsePEM(b []byte) (any, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("not a PEM private key")
	}
	return x509.ParsePKCS8PrivateKey(block.Bytes)
}

// wireEpoch counts the wires that were started. Handshake counters begin with it, so that no message of an earlier wire
// is newer than one of a later wire, whatever the wall clock says.
func (s *stateDir) wireEpoch(next bool) (uint64, error) {
	var n uint64
	b, err := s.read(fileWireEpoch)
	switch {
	case errors.Is(err, errNoState):
		next = true
	case err != nil:
		return 0, err
	default:
		if n, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32); err != nil {
			return 0, fmt.Errorf("read %s: %w", s.file(fileWireEpoch), err)
		}
	}
	if !next {
		return n, nil
	}
	n++
	return n, s.write(fileWireEpoch, []byte(strconv.FormatUint(n, 10)+"\n"))
}
