// Package docker is weft as a network and address plugin of Docker (libnetwork's remote drivers): an HTTP server on a unix
// socket in Docker's plugin folder that answers JSON calls.
//
//	dockerd                                 plugin                                   Node
//	network create   IpamDriver.RequestPool     the cluster's pool
//	                 NetworkDriver.CreateNetwork  is kept in the book
//	run              IpamDriver.RequestAddress   claims an address, in the name of the MAC   Claim
//	                 NetworkDriver.CreateEndpoint is kept in the book                          Arrange
//	                 NetworkDriver.Join           makes a veth pair; dockerd moves one end    Connect, Arrange
//	rm               Leave, DeleteEndpoint                                                 Disconnect, Arrange
//	                 IpamDriver.ReleaseAddress                                             Release
//
// dockerd waits for every answer with locks held, so each handler has a deadline, and nothing is shared that one could
// hold while another waits: the book is locked for as long as it takes to read or write it. Calls may come twice, or not
// at all: each of them is idempotent, and Run gives back what Docker forgot.
//
// A Docker network belongs to one machine, and its driver is not told its name. Two machines mean the same network when
// both were given the option network=NAME; without it, it is the cluster's common network, where weft attach and other
// runtimes put their pods. Who is in which network, and who is where by which addresses, is handed to the Node as one
// value, the Arrangement, after every change; the Node keeps the networks apart.
//
// In a cluster of IPv6 alone containers have an IPv6 address; what Docker insists on beside it is an IPv4 address that leads
// nowhere (standIn).
//
// Addresses, veth pairs, packet filters and other machines are the Node's.
package docker
