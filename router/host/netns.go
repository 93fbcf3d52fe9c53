package host

import (
	"path/filepath"
	"strconv"
	"strings"
)

// NetNSPath makes a path of what a person types for a network namespace: a path, a name under /run/netns, or a PID.
func NetNSPath(s string) string {
	if strings.ContainsRune(s, '/') {
		return s
	}
	if pid, err := strconv.Atoi(s); err == nil && pid > 0 {
		return filepath.Join("/proc", s, "ns/net")
	}
	return filepath.Join("/run/netns", s)
}
