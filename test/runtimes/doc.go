// Package runtimes makes container hosts out of the hosts of test/netlab, and tells stories on them with the container
// runtimes that people run. A Node has process numbers, mounts, hostname, IPC and control groups of its own, a disk that
// outlives its power, and a /run that does not: runtimes run in it with their ordinary paths and without flags, and killing
// its first process is pulling its plug.
//
//	func TestMain(m *testing.M) { runtimes.BeNode(); os.Exit(m.Run()) }
//
//	n := runtimes.New(t, host)
//	out, err := n.Exec(ctx, "ctr", "version")
//	daemon := n.Command("containerd")
//	err = daemon.Start()
//	err = n.Kill()  // power cut: processes, /run, devices, routes and filters are gone, the disk stays
//	err = n.Boot()
//
// Everything the runtimes write lands below the host's scratch directory: of the machine's own files a node sees a layer
// that it may change without changing them. Images are made by hand of the statically linked busybox (Image), so there is
// no registry. What the network between nodes looks like is left to netlab, and what weft says to test/cluster.
package runtimes
