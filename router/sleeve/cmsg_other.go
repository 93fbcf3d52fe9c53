//go:build !linux

package sleeve

// Control messages are not used here: every send is one datagram.
const (
	sendOOB = 0
	recvOOB = 0
)

func putSendOOB([]byte, bool, int, uint8) []byte   { return nil }
func parseRecvOOB([]byte) (segment int, tos uint8) { return 0, 0 }
func refusesSegments(error) (again, always bool)   { return false, false }
func tooBig(error) bool                            { return false }
func deviceGone(error) bool                        { return false }
