package host

import (
	"net/netip"
	"time"
)

// Echo is an answer.
type Echo struct {
	From netip.Addr
	Seq  uint16
	At   time.Time // when the kernel got it
}

// echoHeader is what ICMP puts before the data; echoToken is ours that follows.
const (
	echoHeader = 8
	echoToken  = 8
	// MinEcho is the smallest IPv4 packet that an Echoer sends, bytes.
	MinEcho = 20 + echoHeader + echoToken
)
