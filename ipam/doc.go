// Package ipam gives addresses to containers.
package ipam
