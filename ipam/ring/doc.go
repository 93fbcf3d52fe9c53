// Package ring says who owns which part of the cluster's address space.
package ring
