package docker

// The messages of libnetwork's remote drivers, as far as weft has a use for them. Docker adds fields from time to time;
// those that are not here are passed over.

const (
	optionGeneric  = "com.docker.network.generic"  // what was given with -o
	optionInternal = "com.docker.network.internal" // --internal
	optionGateway  = "com.docker.network.gateway"
	optionMAC      = "com.docker.network.endpoint.macaddress"
	optionPorts    = "com.docker.network.portmap"
	optionPurpose  = "RequestAddressType"
)

type implements struct {
	Implements []string
}

type networkCapabilities struct {
	Scope             string
	ConnectivityScope string
}

type ipamCapabilities struct {
	RequiresMACAddress bool
}

type addressSpaces struct {
	LocalDefaultAddressSpace  string
	GlobalDefaultAddressSpace string
}

type poolRequest struct {
	Pool    string // --subnet
	SubPool string // --ip-range
	V6      bool
}

type poolReply struct {
	PoolID string
	Pool   string
	Data   map[string]string
}

type addressRequest struct {
	PoolID  string
	Address string // --ip; in ReleaseAddress what is given back
	Options map[string]string
}

type addressReply struct {
	Address string
}

type networkRequest struct {
	NetworkID string
	Options   networkOptions
	IPv4Data  []addressData
	IPv6Data  []addressData
}

type networkOptions struct {
	Generic  map[string]any `json:"com.docker.network.generic"`
	Internal bool           `json:"com.docker.network.internal"`
}

type addressData struct {
	AddressSpace string
}

// addressSpace tells weft's addresses from those of other address drivers.
const addressSpace = "weft"

type endpointRequest struct {
	NetworkID  string
	EndpointID string
	SandboxKey string // in Join: path of the container's network namespace, which may not exist yet
	Interface  endpointInterface
	Options    endpointOptions
}

type endpointInterface struct {
	Address     string
	AddressIPv6 string
	MacAddress  string
}

type endpointOptions struct {
	Ports []portMapping `json:"com.docker.network.portmap"`
}

type portMapping struct {
	Proto       int // of IP: 6, 17, 132
	Port        int // in the container
	HostIP      string
	HostPort    int
	HostPortEnd int
}

type endpointReply struct {
	Interface struct{} // empty: dockerd's own choice is right
}

type joinReply struct {
	InterfaceName         interfaceName
	Gateway, GatewayIPv6  string        `json:",omitempty"`
	StaticRoutes          []staticRoute `json:",omitempty"`
	DisableGatewayService bool          // dockerd shall not connect a bridge of its own, too
}

type interfaceName struct {
	SrcName, DstPrefix string
}

type staticRoute struct {
	Destination string
	RouteType   int
}

// routeOnLink is a route through the interface itself.
const routeOnLink = 1

// failure is read under one name by network drivers' callers and under the other by those of address drivers.
type failure struct {
	Err   string
	Error string
}

func failed(words string) failure { return failure{words, words} }
