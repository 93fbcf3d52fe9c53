// Package meshsim plays the life of a cluster of up to thousands of nodes in one process: every node is a real
// mesh.Mesh with its memberlist, on a network in memory, in a bubble of testing/synctest whose clock moves as fast as
// the work is done. It measures what the mesh costs and how long it takes to agree; it is no part of weft.
//
// What is real: package mesh with all of its messages, signatures included. What is made here: the join (a sponsor takes
// the certificate over and hands out what it knows), the store (memory), and the network below NodeIDs. Of that network
// the simulation knows as much as decides about membership:
//
//   - delay, jitter and loss of every path, and cuts between any two nodes in either direction (package meshtest);
//   - NAT. A share of the nodes cannot be dialled. What two such nodes send to each other travels through a node that
//     can, in an envelope, one hop after the other, as it does in the wire; each has a few homes for that, and leaves one
//     that died or was cut off after FailOver. With relaying off such a pair has no path, which is how other systems fail.
//   - sessions: a datagram is carried when each end has the other's record, as the wire has no key before.
//
// Streams between two that cannot be dialled need a living home at the moment when they are opened, and two round trips
// more.
//
// Deaths are counted at the moment when a mesh tells of them, and each is judged: false when the node that was called
// dead was up, and no cut of the network parted it from the one that said so.
package meshsim
