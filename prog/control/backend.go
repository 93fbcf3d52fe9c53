package control

import "context"

// Backend is the daemon as the server needs it. Every method may be called from several goroutines at once, and
// returns soon after its context ends. An error that is for a person is an *Error; any other is shown as it is.
// Peers are named by name, by ID, or by the beginning of an ID that is long enough to be unique.
type Backend interface {
	Status(ctx context.Context) (Status, error)

	Init(ctx context.Context, r InitRequest) (InitReply, error)
	Join(ctx context.Context, r JoinRequest) (JoinReply, error)
	// Leave answers when the node has left; Down as soon as stopping has begun. Both stop the daemon, which must wait
	// for its server, so that the answer still goes out.
	Leave(ctx context.Context, r LeaveRequest) (LeaveReply, error)
	Down(ctx context.Context) error

	TokenCreate(ctx context.Context, r TokenRequest) (TokenReply, error)
	TokenList(ctx context.Context) (Tokens, error)
	TokenRevoke(ctx context.Context, id string) error

	Attach(ctx context.Context, r AttachRequest) (AttachReply, error)
	Detach(ctx context.Context, r DetachRequest) (DetachReply, error)

	// For the plugins of container runtimes.
	Check(ctx context.Context, r CheckRequest) (CheckReply, error)
	Lend(ctx context.Context, r LendRequest) (LendReply, error)
	Collect(ctx context.Context, r CollectRequest) (CollectReply, error)
	Ready(ctx context.Context) (ReadyReply, error)

	PeerList(ctx context.Context) (Peers, error)
	PeerShow(ctx context.Context, peer string) (PeerDetail, error)
	// PeerRemove answers when the removals are signed and told; taking over the space goes on after that, see
	// IPAM.Reclaims.
	PeerRemove(ctx context.Context, r RemoveRequest) (RemoveReply, error)

	IssuerList(ctx context.Context) (Issuers, error)
	IssuerAdd(ctx context.Context, peer string) error
	IssuerRemove(ctx context.Context, peer string) error

	IPList(ctx context.Context) (Claims, error)
	IPRing(ctx context.Context) (Ring, error)
	// IPClaim keeps an address for nobody's interface yet, IPRelease gives it up.
	IPClaim(ctx context.Context, r IPClaimRequest) (IPClaimReply, error)
	IPRelease(ctx context.Context, r IPReleaseRequest) (IPReleaseReply, error)

	// ClientAdd lets a client from outside in; its answer holds a private key that is kept nowhere. ClientRemove answers
	// when it is cut off.
	ClientAdd(ctx context.Context, r ClientAddRequest) (ClientAddReply, error)
	ClientList(ctx context.Context) (Clients, error)
	ClientRemove(ctx context.Context, name string) error

	// Ping calls reply for each probe, in order, and ends when all are answered or lost, when reply fails, or when
	// the context ends.
	Ping(ctx context.Context, r PingRequest, reply func(PingReply) error) error
	Doctor(ctx context.Context, r DoctorRequest) (Doctor, error)
	// Graph asks the other members too, for a few seconds at most; who does not answer is drawn as such.
	Graph(ctx context.Context) (Graph, error)
	Report(ctx context.Context) (Report, error)
}
