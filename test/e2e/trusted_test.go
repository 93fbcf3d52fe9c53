package e2e

import (
	"fmt"
	"strings"
	"testing"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// Two of three machines trust the subnets between them: these two, and only these, talk plain VXLAN, and say so.
func TestTrustedSubnetsTalkPlain(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	trust := []string{"--trusted-subnets", "198.18.0.0/16"}
	token := s.founded(trust...)
	s.must(s.b.Up(append(trust, "--join", token)...))
	s.must(s.c.Up("--join", token))
	s.whole()
	between := func(m, n *cluster.Machine, transport string, sealed bool) {
		t.Helper()
		_, err := m.WaitFor(s.within(patience), func(st control.Status) error {
			for _, p := range st.Peers {
				if p.Name == n.Name() && (p.Transport != transport || p.Encrypted != sealed || p.Path != control.PathDirect) {
					return fmt.Errorf("%s to %s: %s, encrypted %v, path %s: %s", m, n, p.Transport, p.Encrypted, p.Path, p.Reason)
				}
			}
			return nil
		})
		s.must(err)
	}
	between(s.a, s.b, "vxlan", false)
	between(s.b, s.a, "vxlan", false)
	for _, m := range []*cluster.Machine{s.a, s.b} {
		between(m, s.c, "sleeve", true)
		between(s.c, m, "sleeve", true)
	}
	pods := s.pods()
	s.connected(pods)
	for m, want := range map[*cluster.Machine]string{s.a: control.EncryptionTrustedSubnets, s.c: control.EncryptionRequired} {
		st, err := m.Status()
		s.must(err)
		if st.Cluster.Encryption != want {
			t.Errorf("%s says encryption is %q, want %q", m, st.Cluster.Encryption, want)
		}
	}
	out, err := s.a.CLI("status")
	s.must(err)
	if !strings.Contains(out, "not encrypted") {
		t.Errorf("the status for people does not say what is not encrypted:\n%s", out)
	}

	// What is plain is seen on the cables of the two, and nothing on the third.
	plain := s.watch(s.pools()...)
	for _, p := range pods {
		for _, q := range pods {
			if p != q {
				s.must(p.WaitPing(s.within(patience), q.Addrs[0]))
				s.must(p.WaitPing(s.within(patience), q.Addrs[1]))
			}
		}
	}
	plain.Stop()
	if plain[0].Count() == 0 || plain[1].Count() == 0 {
		t.Error("nothing was seen in clear between those who trust")
	}
	s.sealed(netlab.Captures{plain[2]})

	// A stranger inside the trusted subnets is still not a peer: nothing that it sends by VXLAN arrives.
	marker := []byte("marked by the stranger")
	there := pods[1].Capture("eth0", netlab.CaptureOptions{Match: netlab.Contains(marker)})
	inner := netlab.UDPPacket(addrPort(pods[0].Addrs[0]), addrPort(pods[1].Addrs[0]), marker)
	for vni := range byte(4) {
		frame := append(append([]byte{8, 0, 0, 0, 0, 0, vni, 0}, make([]byte, 12)...), 8, 0)
		s.must(s.c.SendUDP(s.c.AddrPort4(6785), s.b.AddrPort4(6785), append(frame, inner...)))
	}
	s.must(pods[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
	there.Stop()
	if there.Count() > 0 {
		t.Errorf("a stranger's packet arrived:\n%s", netlab.Captures{there}.Describe(4))
	}

	// One side stops trusting: from then on all is sealed.
	s.must(s.b.Stop())
	s.must(s.b.Up())
	s.whole()
	between(s.a, s.b, "sleeve", true)
	between(s.b, s.a, "sleeve", true)
	s.connected(pods)
	sealed := s.watch(s.pools()...)
	s.connected(pods)
	s.sealed(sealed)
}
