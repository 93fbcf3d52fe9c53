package weftd

import (
	"strings"
	"testing"

	"weft/prog/control"
)

// The last member that leaves keeps its state, and the cluster goes on from there when it is started again.
func TestLastMemberKeepsTheCluster(t *testing.T) {
	m := machines(t, 1)[0]
	m.found()
	made := m.ready(1)
	reply := must(m.Leave(t.Context(), control.LeaveRequest{}))(t)
	if len(reply.Notes) != 1 || !strings.Contains(reply.Notes[0], "This was the last member, so its state stays") {
		t.Errorf("notes %q", reply.Notes)
	}
	m.gone()
	m.up()
	if s := m.ready(1); s.Cluster.ID != made.Cluster.ID || s.Node.ID != made.Node.ID {
		t.Errorf("after the return: %+v %+v, before %+v", s.Cluster, s.Node, made.Cluster)
	}
}
