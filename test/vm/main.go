// Program vm runs another program inside a virtual machine with a kernel of Debian's, because some of what weft needs of
// a kernel is not on every machine that tests weft: WireGuard, netem, and kernels of another age. It returns the program's
// output and exit status, so that
//
//	go test -exec "vm -kernel linux-image-cloud-amd64" ./router/wireguard
//
// is an ordinary test run. The machine is made of a kernel package, a busybox and the program; it has no disk, no network
// card and no user, so it needs no rights here. KVM is used where it works. What is tested is up to the program.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	exitTimeout = 124 // as timeout(1) has it
	exitBroken  = 125 // the machine, not the program
)

// kernelEnv tells the program in which kernel it runs; kernelDefault is Debian's own one.
const (
	kernelEnv     = "WEFT_VM"
	kernelDefault = "linux-image-cloud-amd64"
)

// slowness tells tests how much longer than elsewhere they should be ready to wait: by its own clock an emulated machine computes
// several times slower than a real one. netlab reads it.
const slowness = "WEFT_TEST_SLOW=5"

// options are the flags.
type options struct {
	kernel  string        // Debian package
	without string        // modules that the kernel shall not have
	files   string        // folder that the program finds as /files
	limit   time.Duration // for all
	memory  int           // MiB
	cache   string
	log     string // file for the kernel's log
	verbose bool
}

func main() {
	var o options
	flag.StringVar(&o.kernel, "kernel", kernelDefault, "Debian's `package` of the kernel")
	flag.StringVar(&o.without, "without", "", "`modules` that the kernel shall lack, separated by spaces")
	flag.StringVar(&o.files, "files", os.Getenv("WEFT_VM_FILES"), "`folder` that the program finds as /files ($WEFT_VM_FILES)")
	flag.DurationVar(&o.limit, "limit", 8*time.Minute, "longest `time` from start to end")
	flag.IntVar(&o.memory, "memory", 1536, "`MiB`")
	flag.StringVar(&o.cache, "cache", "", "`folder` of unpacked kernels (default: that of the user)")
	flag.StringVar(&o.log, "log", os.Getenv("WEFT_VM_LOG"), "`file` for the kernel's log ($WEFT_VM_LOG)")
	flag.BoolVar(&o.verbose, "v", false, "say what took how long")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: vm [flags] PROGRAM [ARGUMENT]...")
		flag.PrintDefaults()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	status, err := run(ctx, o, flag.Args())
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "vm: %v\n", err)
	}
	os.Exit(status)
}

func run(ctx context.Context, o options, args []string) (status int, err error) {
	if o.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return exitBroken, fmt.Errorf("find cache: %w", err)
		}
		o.cache = filepath.Join(dir, "weft-vm")
	}
	began := time.Now()
	k, err := getKernel(ctx, o)
	if err != nil {
		return exitBroken, err
	}
	tmp, err := os.MkdirTemp("", "weft-vm-")
	if err != nil {
		return exitBroken, err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // the next one has another name
	initrd := filepath.Join(tmp, "initrd")
	if err := writeRun(initrd, k, o, args); err != nil {
		return exitBroken, fmt.Errorf("pack %s: %w", args[0], err)
	}
	packed := time.Now()
	status, err = boot(ctx, k, o, tmp, initrd)
	if o.verbose {
		fmt.Fprintf(os.Stderr, "vm: kernel %s, prepared in %.1f s, ran %.1f s\n", k.release,
			packed.Sub(began).Seconds(), time.Since(packed).Seconds())
	}
	return status, err
}

// environment is what of ours the program gets: what steers tests.
func environment(k kernel, o options) []string {
	env := []string{kernelEnv + "=" + k.release, slowness}
	if o.files != "" {
		env = append(env, "WEFT_E2E_PROGRAMS=/files")
	}
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "WEFT_TEST_") {
			env = append(env, kv)
		}
	}
	return env
}
