package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// userHertz is the unit of CPU times in /proc on every Linux.
const userHertz = 100

// cpuTime is what a process has used so far, ended threads included.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	// The name in parentheses may hold anything; after it come state and numbers, utime the 12th and stime the 13th.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("read CPU time of process %d: too few fields", pid)
	}
	var ticks int
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("read CPU time of process %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHertz, nil
}

func cpuTimes(pids []int) (sum time.Duration, err error) {
	for _, p := range pids {
		t, err := cpuTime(p)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// busyTime is what all processors of the machine have worked so far, whoever for; time that a hypervisor took is not.
func busyTime() (sum time.Duration, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the machine's CPU time: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line) // cpu user nice system idle iowait irq softirq steal ...
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("read the machine's CPU time: %q", line)
	}
	for i, f := range fields[1:8] {
		ticks, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("read the machine's CPU time: %w", err)
		}
		if i != 3 && i != 4 {
			sum += time.Duration(ticks) * time.Second / userHertz
		}
	}
	return sum, nil
}

// Lines of /proc/PID/status: the memory that a process occupies, and the most that it ever has.
const (
	resident     = "VmRSS:"
	residentPeak = "VmHWM:"
)

// memoryMiB reads such a line.
func memoryMiB(pid int, of string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, of); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return float64(kib) / 1024, err
		}
	}
	return 0, fmt.Errorf("read memory of process %d: it has none", pid)
}

// machine says what the figures were made on.
func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	cpu := "unknown CPU"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("machine: Linux %s, %d × %s", unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), cpu)
}

// control settles the congestion control of TCP and says which it is: machines set different ones, and with each the
// same path carries a different rate.
func (o *options) control() string {
	own, available := "unknown", ""
	for name, into := range map[string]*string{"tcp_congestion_control": &own, "tcp_available_congestion_control": &available} {
		if b, err := os.ReadFile("/proc/sys/net/ipv4/" + name); err == nil {
			*into = strings.TrimSpace(string(b))
		}
	}
	switch {
	case o.congestion == "" || o.congestion == own:
		return "congestion control: " + own + ", the machine's own"
	case !slices.Contains(strings.Fields(available), o.congestion):
		asked := o.congestion
		o.congestion = ""
		return fmt.Sprintf("congestion control: %s, the machine's own, as it has no %s", own, asked)
	}
	return fmt.Sprintf("congestion control: %s (the machine's own is %s)", o.congestion, own)
}

// versions says what was measured, by what is written in the programs.
func versions(weft, wireguard string) string {
	commit := "unknown"
	if info, err := buildinfo.ReadFile(weft); err == nil {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = s.Value[:min(len(s.Value), 12)]
			case s.Key == "vcs.modified" && s.Value == "true":
				commit += " with changes"
			}
		}
	}
	module := "unknown"
	if info, err := buildinfo.ReadFile(wireguard); err == nil {
		for _, d := range info.Deps {
			if d.Path == "golang.zx2c4.com/wireguard" {
				module = d.Version
			}
		}
	}
	return fmt.Sprintf("programs: weft at commit %s, wireguard-go %s, both by %s", commit, module, runtime.Version())
}

// load says how busy the machine is with other things.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "load: unknown"
	}
	fields := strings.Fields(string(b))
	return fmt.Sprintf("load: %s (1, 5, 15 min; %s)", strings.Join(fields[:3], " "), time.Now().UTC().Format(time.DateTime))
}

// busy warns of a machine on which something else runs. A program of many threads then gets more of the CPUs than one of few,
// which no pairing takes out: CPU time for each byte stays comparable, throughput hardly.
func busy() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(b), " ")
	if load, err := strconv.ParseFloat(first, 64); err != nil || load < float64(runtime.NumCPU()) {
		return ""
	}
	return "the machine was busy with something else before: trust CPU-s/GiB, and of throughput only large differences\n"
}
