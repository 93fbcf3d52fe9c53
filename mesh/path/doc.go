// Package path chooses between the ways to one peer: its addresses, those where it is heard from, relays, and TCP where
// nothing else passes. A Set measures each way by numbered probes (RTT, loss, the largest packet that passes) and says
// which one packets take. It is a pure machine: no clock, socket, goroutine or log. Time comes in as values, probes go out
// as values; sealing and sending them, and telling which relays can be used, is left to the caller.
//
//	Want, Heard,      a probe is due      answered
//	Punch ──> untried ──────────> probing ────────> works ──┐
//	             ^                   │                ^  │   │ 2 answers missing, packets of full
//	             │                   │        answered│  v   v size missing, or packets lost
//	             │ retry: 5 s,       │ 5 s            └─ suspect
//	             │ 30 s or 10 min    v                      │ 5 s without any answer
//	             └───────────────── dead <─────────────────┘
//	                                  │ not wanted, and silent for a minute
//	                                  v
//	                                gone (terminal)
//
// One way is active. It is left at once when it is suspect and another works; for a better one only after that one was
// better by far in three rounds. A peer that comes from where it did not come from before is followed at once, and the way
// is proven after that.
package path
