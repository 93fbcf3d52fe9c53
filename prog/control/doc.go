// Package control is the interface between the daemon and everything that people and container runtimes run on the
// same machine: JSON over HTTP over a unix socket, under the path /v1.
//
// It holds the documents (Status, Claims, Ring, Tokens, ...), the errors with their exit codes, a Client, and a Server
// that checks who is calling before it asks a Backend. Root, and the user that the daemon runs as, may change things;
// members of the group "weft" may read; the kernel vouches for the caller (SO_PEERCRED), so there are no passwords.
//
// Documents only ever gain fields. A client ignores fields that it does not know; the server refuses them in a
// request, because a request that is half understood is worse than one that is refused.
//
// What the commands mean is left to the Backend, how they look to the command line, and what crosses the network to
// other machines to package mesh.
package control
