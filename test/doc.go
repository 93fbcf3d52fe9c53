// Package test holds what no single package can hold: which package may import which, where each third-party module
// lives, how big the program may get, and that every snippet of the documentation is run. Stories of whole clusters are
// in e2e, the machines that they run on in netlab.
package test
