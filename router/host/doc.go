// Package host is the only part of weft's router that speaks to the kernel: links, addresses, routes, neighbours,
// rules, sysctls, the nftables table, network namespaces and TUN devices.
//
// It reads the present state (Snapshot), carries out single changes (Apply), keeps one nftables table equal to rule sets
// given as values (Filter), joins namespaces of pods to the host by veth pairs (Plug, Unplug), and reports that somebody
// changed something (Watch). Everything is bound to the network namespace in which the Host was opened, so several can
// live in one process. What ought to be there, and in which order, is decided by package router and by the transports;
// nothing here knows of peers.
//
// On anything but Linux every operation answers with the same error, which wraps ErrUnsupported.
package host
