package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// kernel is one that was unpacked: its image, and an archive with its modules and busybox.
type kernel struct {
	dir     string
	release string // as uname -r says
}

func (k *kernel) image() string { return filepath.Join(k.dir, "vmlinux") }
func (k *kernel) base() string  { return filepath.Join(k.dir, "base.cpio") }

// packages that must be installed here; words for an error.
const aptLine = "apt-get install --no-install-recommends qemu-system-x86 busybox-static kmod xz-utils zstd lz4"

// modules are those that weft and its tests use; what they depend on comes with them.
var modules = strings.Fields(`
	wireguard vxlan veth tun dummy bridge
	sch_netem sch_tbf sch_ingress sch_fq_codel cls_u32 cls_matchall act_mirred
	nf_tables nft_chain_nat nft_ct nft_nat nft_masq nft_redir nft_reject_inet nft_limit nft_log nft_fib_inet nft_compat
	nft_numgen nft_hash nf_conntrack nf_conntrack_netlink nf_nat nfnetlink
	xt_conntrack xt_comment xt_MASQUERADE xt_tcpudp xt_mark ip_tables iptable_nat iptable_filter
	esp4 esp6 xfrm_user xfrm_algo af_packet virtio_pci virtio_console`)

// cipherFolders are taken whole: which templates a cipher of IPsec needs differs between kernels.
var cipherFolders = []string{"kernel/crypto", "kernel/arch/x86/crypto", "kernel/lib/crypto"}

// recipe tells one way to make the base from another: a cache that was made another way is made anew.
func recipe() string {
	h := sha256.New()
	h.Write(initScript)
	for _, list := range [][]string{applets, modules, cipherFolders} {
		fmt.Fprintf(h, "%q\n", list)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// keepFor is how long a kernel is used before apt is asked for a newer one.
const keepFor = 14 * 24 * time.Hour

// getKernel fetches and unpacks the package, unless that was done before. Only files in the cache are made.
func getKernel(ctx context.Context, o options) (kernel, error) {
	k := kernel{dir: filepath.Join(o.cache, o.kernel)}
	if b, err := os.ReadFile(filepath.Join(k.dir, "release")); err == nil {
		k.release = strings.TrimSpace(string(b))
		made, _ := os.ReadFile(filepath.Join(k.dir, "recipe"))
		st, err := os.Stat(k.base())
		if err == nil && time.Since(st.ModTime()) < keepFor && string(made) == recipe() {
			return k, nil
		}
	}
	for _, tool := range []string{"qemu-system-x86_64", "busybox", "depmod", "modprobe", "xz", "dpkg-deb", "apt-get"} {
		if _, err := exec.LookPath(tool); err != nil {
			return k, fmt.Errorf("%s is missing. Try: %s", tool, aptLine)
		}
	}
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return k, err
	}
	work, err := os.MkdirTemp(o.cache, ".unpack-")
	if err != nil {
		return k, err
	}
	defer os.RemoveAll(work) //nolint:errcheck // the next one has another name
	fresh := kernel{dir: filepath.Join(work, "ready")}
	if err := fresh.make(ctx, o.kernel, work); err != nil {
		return k, fmt.Errorf("make kernel of %s: %w", o.kernel, err)
	}
	// Two that run side by side make the same.
	if err := os.RemoveAll(k.dir); err != nil {
		return k, err
	}
	if err := os.Rename(fresh.dir, k.dir); err != nil {
		return k, err
	}
	k.release = fresh.release
	return k, nil
}

func (k *kernel) make(ctx context.Context, pkg, work string) error {
	if err := os.MkdirAll(k.dir, 0o755); err != nil {
		return err
	}
	newest, err := realPackage(ctx, pkg)
	if err != nil {
		return err
	}
	fetch := exec.CommandContext(ctx, "apt-get", "-q", "-o", "Acquire::Retries=5", "download", newest)
	fetch.Dir = work
	if out, err := fetch.CombinedOutput(); err != nil {
		return fmt.Errorf("download %s: %w: %s (is apt-get update needed?)", newest, err, bytes.TrimSpace(out))
	}
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(debs) != 1 {
		return fmt.Errorf("download %s: %d files", newest, len(debs))
	}
	tree := filepath.Join(work, "tree")
	if _, err := output(ctx, "dpkg-deb", "-x", debs[0], tree); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(tree, "lib/modules")); errors.Is(err, fs.ErrNotExist) {
		tree = filepath.Join(tree, "usr")
	}
	found, err := os.ReadDir(filepath.Join(tree, "lib/modules"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("find modules of %s: %d releases, %w", newest, len(found), err)
	}
	k.release = found[0].Name()
	images, _ := filepath.Glob(filepath.Join(work, "tree/boot/vmlinuz-*"))
	if len(images) != 1 {
		return fmt.Errorf("find image of %s: %d files", newest, len(images))
	}
	if err := unpackImage(ctx, images[0], k.image()); err != nil {
		return err
	}
	root := filepath.Join(work, "root")
	if err := k.collect(ctx, tree, root); err != nil {
		return err
	}
	if err := writeBase(k.base(), root); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(k.dir, "recipe"), []byte(recipe()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(k.dir, "release"), []byte(k.release+"\n"), 0o644)
}

// realPackage follows a package that only names the newest kernel.
func realPackage(ctx context.Context, pkg string) (string, error) {
	out, err := output(ctx, "apt-cache", "depends", pkg)
	if err != nil {
		return "", fmt.Errorf("%w (is apt-get update needed?)", err)
	}
	for f := range strings.FieldsSeq(out) {
		if strings.HasPrefix(f, "linux-image-") && f != pkg {
			return f, nil
		}
	}
	return pkg, nil
}

// unpackImage takes the kernel out of its self-unpacking form: emulated, its own unpacking takes seconds. An image that is
// not understood is used as it is.
func unpackImage(ctx context.Context, from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	const sectors, payload, size = 0x1f1, 0x248, 0x24c // Documentation/arch/x86/boot.rst
	if len(b) > size+4 {
		begin := (int(b[sectors])+1)*512 + int(binary.LittleEndian.Uint32(b[payload:]))
		end := begin + int(binary.LittleEndian.Uint32(b[size:]))
		if begin > 0 && begin < end && end <= len(b) {
			if elf := decompress(ctx, b[begin:end]); bytes.HasPrefix(elf, []byte("\x7fELF")) {
				return os.WriteFile(to, elf, 0o644)
			}
		}
	}
	return os.WriteFile(to, b, 0o644)
}

// decompress tells the format by its first bytes; nil when it or its program is not known.
func decompress(ctx context.Context, b []byte) []byte {
	for _, f := range []struct {
		magic string
		tool  []string
	}{
		{"\x28\xb5\x2f\xfd", []string{"zstd", "-qdc"}},
		{"\xfd7zXZ", []string{"xz", "-qdc"}},
		{"\x02\x21\x4c\x18", []string{"lz4", "-qdc"}},
		{"\x1f\x8b", []string{"gzip", "-qdc"}},
	} {
		if !bytes.HasPrefix(b, []byte(f.magic)) {
			continue
		}
		cmd := exec.CommandContext(ctx, f.tool[0], f.tool[1:]...)
		cmd.Stdin = bytes.NewReader(b)
		out, _ := cmd.Output() // a warning about what follows the payload is no failure: the ELF header decides
		return out
	}
	return nil
}

// collect copies the modules that are wanted into root, unpacked, with their index, and busybox.
func (k *kernel) collect(ctx context.Context, tree, root string) error {
	if _, err := output(ctx, "depmod", "-b", tree, k.release); err != nil {
		return err
	}
	lib := filepath.Join(tree, "lib/modules", k.release)
	wanted := slices.Clone(modules)
	for _, folder := range cipherFolders {
		_ = filepath.WalkDir(filepath.Join(lib, folder), func(path string, d fs.DirEntry, err error) error {
			if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); err == nil && ok && !d.IsDir() {
				wanted = append(wanted, name)
			}
			return nil // a folder that a kernel has not got holds nothing
		})
	}
	files := map[string]bool{}
	for _, m := range wanted {
		// One that is built in, or unknown to this kernel, has no file.
		out, _ := output(ctx, "modprobe", "-d", tree, "-S", k.release, "--show-depends", m)
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) >= 2 && f[0] == "insmod" {
				files[f[1]] = true
			}
		}
	}
	to := filepath.Join(root, "lib/modules", k.release)
	for f := range files {
		rel, err := filepath.Rel(lib, f)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if packed, ok := strings.CutSuffix(rel, ".xz"); ok {
			rel, b = packed, decompress(ctx, b)
		} else if packed, ok := strings.CutSuffix(rel, ".zst"); ok {
			rel, b = packed, decompress(ctx, b)
		}
		if err := writeFile(filepath.Join(to, rel), b, 0o644); err != nil {
			return err
		}
	}
	for _, name := range []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"} {
		b, err := os.ReadFile(filepath.Join(lib, name))
		if err == nil {
			err = writeFile(filepath.Join(to, name), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	if _, err := output(ctx, "depmod", "-b", root, k.release); err != nil {
		return err
	}
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(root, "bin/busybox"), b, 0o755)
}

func writeFile(path string, b []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, mode)
}

// output runs a program and returns what it said on stdout.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}
