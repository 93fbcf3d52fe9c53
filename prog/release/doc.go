// Package release makes of built programs what people download: archives, packages' contents, an image for containers,
// a list of what is linked, and checksums. The same programs give the same bytes, on any machine and at any time: names
// are sorted, times are one time, owners are root.
//
//	weft-linux-ARCH.tar.gz       what prog/join/weft-join.sh installs
//	weft-image-ARCH.tar          an OCI layout that docker and podman load, too
//	weft-linux-ARCH.cdx.json     the modules of the programs, CycloneDX
//	weft-join.sh, SHA256SUMS
//
// How programs are compiled, and packages for distributions (deb, rpm), are left to tools/release.
package release
