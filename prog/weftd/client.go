package weftd

import (
	"cmp"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/ipam"
	"weft/prog/control"
	"weft/router"
	"weft/router/host"
	"weft/router/wireguard"
)

// Clients are machines that are no members: a laptop, a phone, anything with a stock WireGuard. One enters through this
// node, on the weft port, and is treated as a pod of it: an address of this node's blocks, guarded the same way. Its
// private key is made here, shown once and forgotten.
//
//	added: claim of the address ── then the book, durable ── then the device ──> answer
//	removed: the book ── the device ── the address ──> answer
//
// A claim without an entry in the book is what a crash in between left; nobody can use its address, and adding the client
// again takes it.
type clients struct {
	dev wireguard.Device
	key *ecdh.PrivateKey // nil until the first client

	mu   sync.Mutex // held while anything changes; guards what follows
	list []guest
	made bool // the device was made, or may be there from a former run
	now  wireguard.State
}

// guest is a client as the book keeps it. The order of fields is that of the file.
type guest struct {
	Name      string    `json:"name"`
	Public    []byte    `json:"public"`
	Preshared []byte    `json:"preshared"`
	Created   time.Time `json:"created"`
}

const (
	clientPrefix = "client-" // of the name that its address is claimed under
	clientsEvery = 2 * time.Second
	clientMTU    = 1420 // what WireGuard's own tools take
	maxClients   = 1000
)

func (n *node) buildClients() error {
	n.clients.dev = wireguard.User(n.host, wireDevices{n.link}, host.GuestDevice)
	n.clients.made = true
	b, err := n.state.read(fileClients)
	if errors.Is(err, errNoState) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, &n.clients.list)
	}
	if err == nil {
		n.clients.key, err = n.state.clientKey()
	}
	if err != nil {
		return fmt.Errorf("read clients: %w", err)
	}
	return nil
}

// runClients keeps the device as it should be.
func (n *node) runClients(ctx context.Context) error {
	tick := time.NewTicker(clientsEvery)
	defer tick.Stop()
	var last string
	for {
		n.clients.mu.Lock()
		err := n.welcome(ctx)
		n.clients.mu.Unlock()
		if now := fmt.Sprint(err); err != nil && now != last && ctx.Err() == nil {
			last = now
			n.log.Debug("clients cannot enter yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// welcome tells the device who may enter; mu is held.
func (n *node) welcome(ctx context.Context) error {
	c := &n.clients
	var guests []wireguard.Guest
	for _, g := range c.list {
		if claim, ok := claimOf(n.ring.Claims(), clientPrefix+g.Name, ipam.NoInterface); ok {
			guests = append(guests, wireguard.Guest{
				Public: wireguard.Key(g.Public), Preshared: wireguard.Key(g.Preshared), Allowed: hostPrefixes(claim),
			})
		}
	}
	if len(guests) == 0 {
		if !c.made {
			return nil
		}
		err := c.dev.Remove(ctx)
		c.made, c.now = err != nil, wireguard.State{}
		return err
	}
	c.made = true
	now, err := wireguard.Welcome(ctx, c.dev, wireguard.Key(c.key.Bytes()), n.cfg.Listen.Port(), guests)
	if err == nil {
		c.now = now
	}
	return err
}

func hostPrefixes(c ipam.Claim) (all []netip.Prefix) {
	for _, a := range addresses(c) {
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
	}
	return all
}

// guests lists the clients as the router connects them.
func (n *node) guests(claims []ipam.Claim) (pods []router.Pod) {
	n.clients.mu.Lock()
	defer n.clients.mu.Unlock()
	for _, g := range n.clients.list {
		if claim, ok := claimOf(claims, clientPrefix+g.Name, ipam.NoInterface); ok {
			pods = append(pods, router.Pod{
				Name: claim.Container, IfName: claim.IfName, V4: claim.V4, V6: claim.V6, Device: host.GuestDevice,
			})
		}
	}
	return pods
}

// clientOf is the client that a claim is for.
func (n *node) clientOf(c ipam.Claim) (name string, ok bool) {
	n.clients.mu.Lock()
	defer n.clients.mu.Unlock()
	for _, g := range n.clients.list {
		if c.Container == clientPrefix+g.Name && c.IfName == ipam.NoInterface {
			return g.Name, true
		}
	}
	return "", false
}

// keep writes the book; mu is held.
func (n *node) keepClients(list []guest) error {
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return fmt.Errorf("encode clients: %w", err)
	}
	if err := n.state.write(fileClients, append(b, '\n')); err != nil {
		return err
	}
	n.clients.list = list
	return nil
}

// ClientAdd lets a client in and answers with its whole configuration, which is not kept.
func (d *daemon) ClientAdd(ctx context.Context, r control.ClientAddRequest) (control.ClientAddReply, error) {
	n, err := d.current()
	if err != nil {
		return control.ClientAddReply{}, err
	}
	reply, err := n.addClient(ctx, r)
	return reply, explain(err)
}

func (n *node) addClient(ctx context.Context, r control.ClientAddRequest) (control.ClientAddReply, error) {
	if err := checkClientName(r.Name); err != nil {
		return control.ClientAddReply{}, err
	}
	endpoint := r.Endpoint
	if !endpoint.IsValid() {
		rec, ok := n.mesh.Record(n.key.ID())
		if !ok || len(rec.Endpoints) == 0 {
			return control.ClientAddReply{}, &control.Error{
				Code: control.NotReady, Message: "this node knows no address at which a client could reach it",
				Hint: "Name one: weft client add " + r.Name + " --endpoint ADDRESS:PORT",
			}
		}
		endpoint = rec.Endpoints[0]
	}
	if err := host.ProbeTUN(ctx); err != nil {
		return control.ClientAddReply{}, &control.Error{
			Code: control.Unsupported, Message: "clients cannot enter through this machine", Cause: err.Error(),
		}
	}
	n.clients.mu.Lock()
	defer n.clients.mu.Unlock()
	list := slices.Clone(n.clients.list)
	switch {
	case slices.ContainsFunc(list, func(g guest) bool { return g.Name == r.Name }):
		return control.ClientAddReply{}, &control.Error{
			Code: control.Conflict, Message: "there is a client " + r.Name + " already", Cause: "its key was shown once and is not kept",
			Hint: "For a new key: weft client remove " + r.Name + ", then add it again",
		}
	case len(list) >= maxClients:
		return control.ClientAddReply{}, &control.Error{
			Code: control.Conflict, Message: fmt.Sprintf("this node has %d clients, which is the most", maxClients),
			Hint: "Add it on another node, or remove one: weft client list",
		}
	}
	if n.clients.key == nil {
		key, err := n.state.clientKey()
		if err != nil {
			return control.ClientAddReply{}, err
		}
		n.clients.key = key
	}
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return control.ClientAddReply{}, fmt.Errorf("make key: %w", err)
	}
	preshared := make([]byte, wireguard.KeySize)
	if _, err := rand.Read(preshared); err != nil {
		return control.ClientAddReply{}, fmt.Errorf("make key: %w", err)
	}
	claim, err := n.ring.Claim(ctx, ipam.Request{Container: clientPrefix + r.Name, IfName: ipam.NoInterface})
	if err != nil {
		return control.ClientAddReply{}, err
	}
	g := guest{Name: r.Name, Public: private.PublicKey().Bytes(), Preshared: preshared, Created: time.Now().UTC().Truncate(time.Second)}
	if err := n.keepClients(append(list, g)); err != nil {
		return control.ClientAddReply{}, err
	}
	// The device may have to wait for a wire; runClients goes on trying.
	if err := n.welcome(ctx); err != nil {
		n.log.Warn("client cannot enter yet", "client", r.Name, "err", err)
	}
	return control.ClientAddReply{
		Version: control.Version, Name: r.Name, Addresses: addresses(claim),
		Config: n.clientConfig(private, preshared, claim, endpoint),
	}, nil
}

// clientConfig writes what WireGuard's own tools and apps read.
func (n *node) clientConfig(private *ecdh.PrivateKey, preshared []byte, claim ipam.Claim, endpoint netip.AddrPort) string {
	text := func(list []string) string { return strings.Join(list, ", ") }
	var own, pools []string
	for _, p := range hostPrefixes(claim) {
		own = append(own, p.String())
	}
	for _, p := range n.pools {
		pools = append(pools, p.String())
	}
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf(`[Interface]
PrivateKey = %s
Address = %s
MTU = %d

[Peer]
PublicKey = %s
PresharedKey = %s
AllowedIPs = %s
Endpoint = %s
PersistentKeepalive = 25
`, b64(private.Bytes()), text(own), clientMTU, b64(n.clients.key.PublicKey().Bytes()), b64(preshared), text(pools), endpoint)
}

// ClientList lists the clients of this node.
func (d *daemon) ClientList(ctx context.Context) (control.Clients, error) {
	n, err := d.current()
	if err != nil {
		return control.Clients{}, err
	}
	n.clients.mu.Lock()
	defer n.clients.mu.Unlock()
	if n.clients.made && len(n.clients.list) > 0 {
		if now, err := n.clients.dev.State(ctx); err == nil {
			n.clients.now = now
		}
	}
	reply := control.Clients{Version: control.Version}
	for _, g := range n.clients.list {
		c := control.ClientInfo{Name: g.Name, Created: g.Created.Format(time.RFC3339)}
		if claim, ok := claimOf(n.ring.Claims(), clientPrefix+g.Name, ipam.NoInterface); ok {
			c.Addresses = addresses(claim)
		}
		if p, ok := n.clients.now.Peers[wireguard.Key(g.Public)]; ok {
			c.RxBytes, c.TxBytes = p.Received, p.Sent
			if p.Endpoint.IsValid() {
				c.Endpoint = p.Endpoint.String()
			}
			if !p.Handshake.IsZero() {
				c.LastSeen = p.Handshake.UTC().Format(time.RFC3339)
			}
		}
		reply.Clients = append(reply.Clients, c)
	}
	slices.SortFunc(reply.Clients, func(a, b control.ClientInfo) int { return cmp.Compare(a.Name, b.Name) })
	return reply, nil
}

// ClientRemove cuts a client off, and answers when it is.
func (d *daemon) ClientRemove(ctx context.Context, name string) error {
	n, err := d.current()
	if err != nil {
		return err
	}
	return explain(n.removeClient(ctx, name))
}

func (n *node) removeClient(ctx context.Context, name string) error {
	n.clients.mu.Lock()
	defer n.clients.mu.Unlock()
	i := slices.IndexFunc(n.clients.list, func(g guest) bool { return g.Name == name })
	if i < 0 {
		return &control.Error{
			Code: control.NotFound, Message: "this node has no client " + name, Hint: "Try: weft client list",
		}
	}
	if err := n.keepClients(slices.Delete(slices.Clone(n.clients.list), i, i+1)); err != nil {
		return err
	}
	cut := n.welcome(ctx)
	_, released := n.ring.Release(ctx, clientPrefix+name, ipam.NoInterface)
	return errors.Join(cut, released)
}

func checkClientName(name string) error {
	if name == "" || len(name) > 48 || identity.CheckName(name) != nil || strings.ContainsAny(name, " /") {
		return &control.Error{
			Code: control.Usage, Message: fmt.Sprintf("%q is not a name for a client", name),
			Hint: "Take up to 48 letters, digits, dots and dashes, such as phone-anna",
		}
	}
	return nil
}
