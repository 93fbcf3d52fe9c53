package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"weft/prog/control"
	"weft/prog/control/controltest"
	"weft/prog/weftd"
)

// TestMain makes "weft" a command of the scripts: the real command line, whose daemon and data plane write down how
// they were called.
func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"weft": func() {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			a := realApp()
			a.netns = os.Getenv("NETNS_DIR")
			a.entries = notedEntries(a)
			a.capable = func() error {
				if os.Getenv("NO_CAP") != "" {
					return errors.New("no CAP_NET_ADMIN")
				}
				return nil
			}
			os.Exit(a.run(ctx, os.Args))
		},
	})
}

type leakChecked struct{ m *testing.M }

// Run fails a run that leaves goroutines behind.
func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// notedEntries print what they are told. A state directory with a file "cluster" holds a cluster.
func notedEntries(a *app) entries {
	return entries{
		up: func(_ context.Context, cfg weftd.Config) error {
			cmdline, err := os.ReadFile("/proc/self/cmdline")
			if err != nil {
				return err
			}
			argv := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
			fmt.Fprintln(a.stdout, "argv:", filepath.Base(argv[0]), strings.Join(argv[1:], " "))
			for _, s := range weftd.Settings() {
				if v := s.Get(cfg); v != "" && v != "false" {
					fmt.Fprintf(a.stdout, "%s: %s\n", s.Key, v)
				}
			}
			if cfg.Join != "" {
				token, err := cfg.Token()
				fmt.Fprintln(a.stdout, "token:", token, err)
			}
			if cfg.Init {
				cfg.Founded(control.InitReply{Cluster: "c7q2k3mvaaaa", Name: cfg.Name, Pools: cfg.Pools, Token: controltest.Token})
			}
			cfg.Log.Info("up", "name", cfg.Name)
			return nil
		},
		init: func(_ context.Context, cfg weftd.Config, r control.InitRequest) (control.InitReply, error) {
			b, err := json.Marshal(r)
			if err != nil {
				return control.InitReply{}, err
			}
			fmt.Fprintf(a.stderr, "state %s, request %s\n", cfg.State, b)
			reply := control.InitReply{Cluster: "c7q2k3mvaaaa", Name: cfg.Name, Pools: r.Pools, Token: controltest.Token}
			if _, err := os.Stat(filepath.Join(cfg.State, "cluster")); err == nil {
				reply.Existed, reply.Token = true, ""
			}
			return reply, nil
		},
		down: func(_ context.Context, cfg weftd.Config) (bool, error) {
			err := os.Remove(filepath.Join(cfg.State, "wire.sock"))
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			return err == nil, err
		},
		doctor: func(context.Context, weftd.Config) (control.Doctor, error) {
			return control.Doctor{Version: control.Version, Checks: []control.Check{
				{Name: "tun", State: control.CheckFailed, Reason: "there is no /dev/net/tun", Hint: "Try: modprobe tun"},
			}}, nil
		},
		guard: func(_ context.Context, cfg weftd.Config) (weftd.Guarded, error) {
			_, err := os.Stat(filepath.Join(cfg.State, "cluster"))
			if errors.Is(err, fs.ErrNotExist) {
				return weftd.Guarded{}, nil
			}
			for _, p := range cfg.NoMasquerade {
				fmt.Fprintln(a.stdout, "but", p)
			}
			_, err = os.Stat(filepath.Join(cfg.State, "daemon"))
			return weftd.Guarded{
				Pools: []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("fd00::/96")},
				Made:  true, Running: err == nil,
			}, nil
		},
		wire: func(_ context.Context, socket, _ string) error {
			fmt.Fprintln(a.stdout, "wire at", socket)
			return nil
		},
		beside: func(socket string) error {
			fmt.Fprintln(a.stdout, "beside", socket)
			return nil
		},
	}
}

// UPDATE=1 in the environment rewrites the golden parts.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       os.Getenv("UPDATE") != "",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "weft") //nolint:usetesting // WorkDir is too long for a socket
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			env.Setenv("WEFT_SOCKET", filepath.Join(dir, "weft.sock"))
			env.Setenv("WEFT_STATE", filepath.Join(env.WorkDir, "state"))
			env.Setenv("WEFT_CONFIG", "")
			env.Setenv("NETNS_DIR", filepath.Join(env.WorkDir, "netns"))
			env.Setenv("PID", strconv.Itoa(os.Getpid()))
			return os.Mkdir(filepath.Join(env.WorkDir, "state"), 0o700)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"daemon": startDaemon,
			"exits":  exits,
		},
	})
}

// startDaemon serves a scenario until the script ends: daemon NAME [METHOD=MESSAGE]…
func startDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: daemon SCENARIO [METHOD=MESSAGE]...")
	}
	b, ok := scenarios()[args[0]]
	if !ok {
		ts.Fatalf("there is no scenario %q", args[0])
	}
	b.Fail = map[string]error{}
	for _, f := range args[1:] {
		method, message, _ := strings.Cut(f, "=")
		b.Fail[method] = errors.New(message)
	}
	stop, err := controltest.Serve(ts.Getenv("WEFT_SOCKET"), b)
	ts.Check(err)
	ts.Defer(func() { ts.Check(stop()) })
}

// exits runs a command that must end with a code: exits CODE COMMAND...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	if neg || err != nil {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	err = ts.Exec(args[1], args[2:]...)
	got, exit := 0, new(exec.ExitError)
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func TestDataPlaneLeavesProcessorsToPods(t *testing.T) {
	for machine, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 64: 32} {
		if got := wireProcessors(machine); got != want {
			t.Errorf("%d of %d processors, want %d", got, machine, want)
		}
	}
}
