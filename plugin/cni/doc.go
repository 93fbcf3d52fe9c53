// Package cni is weft as container runtimes call it: a program that is started for each thing to be done, told by
// environment and stdin what that is, and heard on stdout. It speaks the Container Network Interface from 0.3.1 to 1.1.0 in
// two roles:
//
//   - weft-cni makes a pod's interface with its addresses;
//   - weft-ipam lends addresses to another main plugin that makes the interface itself (bridge, macvlan, ptp). It is the
//     same program under another name, since runtimes find plugins by file name.
//
// It decides nothing about addresses and touches neither devices nor namespaces: it translates between the runtime's words
// and the daemon's, which it asks over the control socket (package control). stdout gets the result or the error, whole,
// and nothing else; words for people go to stderr.
//
// Everything may be asked again. ADD of what is there answers as before, DEL of what is not there succeeds. DEL also
// succeeds without a daemon: what the runtime then removes takes the interface along, and the daemon gives up claims whose
// namespace is gone by itself, so that no pod has to wait for weft to be able to end.
package cni
