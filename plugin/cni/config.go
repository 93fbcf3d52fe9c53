package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
)

// config is what an administrator writes and what the runtime adds to it. Keys that are not here belong to others, and are
// none of our business: the specification has it so.
type config struct {
	CNIVersion string    `json:"cniVersion"`
	Name       string    `json:"name"` // of the network
	Type       string    `json:"type"`
	Socket     string    `json:"socket"`
	MTU        int       `json:"mtu"`
	DNS        types.DNS `json:"dns"`

	IPAM struct {
		Type   string          `json:"type"`
		Socket string          `json:"socket"`
		Routes *[]*types.Route `json:"routes"` // nil: everything by the gateway
	} `json:"ipam"`

	RuntimeConfig struct {
		IPs     []string        `json:"ips"`
		MAC     string          `json:"mac"`
		Aliases json.RawMessage `json:"aliases"` // a list, or lists by network
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`

	PrevResult json.RawMessage      `json:"prevResult"`
	Valid      []types.GCAttachment `json:"cni.dev/valid-attachments"`
}

func parseConfig(b []byte) (config, error) {
	var c config
	if err := json.Unmarshal(b, &c); err != nil {
		return c, refuse(codeDecode, "the configuration on stdin cannot be read", describe(err))
	}
	if c.CNIVersion == "" {
		c.CNIVersion = "0.1.0" // what the specification takes it for
	}
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		return c, refuse(codeConfig, "the network's name is missing or strange", fmt.Sprintf("name is %.80q", c.Name))
	}
	for _, s := range []string{c.Socket, c.IPAM.Socket} {
		if s != "" && !filepath.IsAbs(s) {
			return c, refuse(codeField, fmt.Sprintf("socket wants an absolute path, got %.80q", s), "")
		}
	}
	if c.IPAM.Routes != nil && slices.Contains(*c.IPAM.Routes, nil) {
		return c, refuse(codeField, "routes of ipam has an element that is null", "")
	}
	if c.MTU < 0 {
		return c, refuse(codeField, fmt.Sprintf("mtu wants a size in bytes or nothing, got %d", c.MTU), "")
	}
	return c, nil
}

// describe says where JSON went wrong without quoting it.
func describe(err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Sprintf("no JSON at byte %d", syntax.Offset)
	case errors.As(err, &kind) && kind.Field != "":
		return fmt.Sprintf("%s wants %s, got %s", kind.Field, kind.Type, kind.Value)
	}
	return err.Error()
}

// call is one question about one configuration.
type call struct {
	conf      config
	daemon    Daemon
	stderr    io.Writer
	container string
	ifname    string
	netns     string
	args      map[string]string // of CNI_ARGS
}

// Limits of what a runtime may name; the daemon takes 4096 bytes of each.
const maxWord = 1024

// named adds which attachment is meant.
func (c call) named(getenv func(string) string, alive bool) (call, error) {
	c.container, c.ifname, c.netns = getenv("CNI_CONTAINERID"), getenv("CNI_IFNAME"), getenv("CNI_NETNS")
	for name, value := range map[string]string{"CNI_CONTAINERID": c.container, "CNI_IFNAME": c.ifname, "CNI_NETNS": c.netns} {
		switch {
		case value == "" && (alive || name != "CNI_NETNS"):
			return c, refuse(codeEnvironment, name+" is not set", "")
		case len(value) > maxWord:
			return c, refuse(codeEnvironment, fmt.Sprintf("%s has %d bytes, at most %d", name, len(value), maxWord), "")
		}
	}
	if utils.ValidateContainerID(c.container) != nil {
		return c, refuse(codeEnvironment, "the container's ID has characters that CNI does not allow", fmt.Sprintf("CNI_CONTAINERID is %.80q", c.container))
	}
	if utils.ValidateInterfaceName(c.ifname) != nil || strings.ContainsFunc(c.ifname, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return c, refuse(codeEnvironment, "the interface has a name that Linux does not allow", fmt.Sprintf("CNI_IFNAME is %.80q", c.ifname))
	}
	if c.netns != "" && !filepath.IsAbs(c.netns) {
		return c, refuse(codeEnvironment, "the network namespace is not an absolute path", fmt.Sprintf("CNI_NETNS is %.80q", c.netns))
	}
	c.args = make(map[string]string)
	for pair := range strings.SplitSeq(getenv("CNI_ARGS"), ";") {
		if key, value, ok := strings.Cut(pair, "="); ok && len(value) <= maxWord {
			c.args[key] = value
		}
	}
	return c, nil
}

// pod is the name of the pod for people.
func (c call) pod() string {
	name, space := c.args["K8S_POD_NAME"], c.args["K8S_POD_NAMESPACE"]
	if name == "" || space == "" {
		return name
	}
	return space + "/" + name
}

// addresses are those that the runtime asks for, wherever it says so.
func (c call) addresses() (all []netip.Addr, err error) {
	for _, list := range [][]string{c.conf.RuntimeConfig.IPs, c.conf.Args.CNI.IPs, strings.Split(c.args["IP"], ",")} {
		for _, s := range list {
			if s = strings.TrimSpace(s); s == "" {
				continue
			}
			bare, _, _ := strings.Cut(s, "/") // the length is the network's, and pods have whole addresses
			a, err := netip.ParseAddr(bare)
			if err != nil || a.Zone() != "" {
				return nil, refuse(codeConfig, fmt.Sprintf("%.80q is no IP address", s), "it was asked for by ips of runtimeConfig, or IP of CNI_ARGS")
			}
			all = append(all, a)
		}
		if len(all) > 0 {
			return all, nil // others say the same, or are overruled
		}
	}
	return nil, nil
}

func (c call) mac() string {
	if c.conf.RuntimeConfig.MAC != "" {
		return c.conf.RuntimeConfig.MAC
	}
	return c.args["MAC"]
}

const (
	maxAliases = 15
	maxAlias   = 253 // a domain name
)

// aliases are other names of the pod. Runtimes write a list, or one for each network.
func (c call) aliases() ([]string, error) {
	raw := c.conf.RuntimeConfig.Aliases
	if len(raw) == 0 {
		return nil, nil
	}
	var list []string
	var byNetwork map[string][]string
	if json.Unmarshal(raw, &list) != nil {
		if json.Unmarshal(raw, &byNetwork) != nil {
			return nil, refuse(codeConfig, "aliases of runtimeConfig is neither a list nor lists by network", "")
		}
		list = byNetwork[c.conf.Name]
	}
	if len(list) > maxAliases {
		return nil, refuse(codeConfig, fmt.Sprintf("%d aliases, at most %d", len(list), maxAliases), "")
	}
	for _, a := range list {
		if len(a) == 0 || len(a) > maxAlias || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return nil, refuse(codeConfig, fmt.Sprintf("%.80q is no alias", a), "")
		}
	}
	return list, nil
}
