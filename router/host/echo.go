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
	// MinEcho is the smallest packet that an Echoer sends, bytes; over IPv6 it is 20 larger.
	MinEcho = 20 + echoHeader + echoToken
)
