package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/vallum/vallum/conformance/machine"
	"github.com/vallum/vallum/conformance/parts"
)

// apt is Debian's package client with lists and archives of our own: no root, nothing on the machine changes.
type apt struct {
	w     *worker
	flags []string
}

// newApt reads the archive's lists.
func newApt(ctx context.Context, w *worker) (*apt, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, fmt.Errorf("apt-get is needed (Debian or Ubuntu): %w", err)
	}
	for _, d := range []string{"apt/lists/partial", "apt/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(w.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	// As if nothing were installed: what the machine has by chance must not be missing elsewhere.
	nothing := filepath.Join(w.dir, "apt", "status")
	if err := os.WriteFile(nothing, nil, 0o644); err != nil {
		return nil, err
	}
	a := &apt{w, []string{
		"-q", "-y", "-o", "Dir::State::lists=" + filepath.Join(w.dir, "apt/lists"), "-o", "Dir::Cache=" + filepath.Join(w.dir, "apt"),
		"-o", "Dir::State::status=" + nothing, "-o", "APT::Sandbox::User=",
	}}
	return a, a.w.run(ctx, "", nil, "apt-get", append(a.flags, "update")...)
}

func (a *apt) end() error { return os.RemoveAll(filepath.Join(a.w.dir, "apt")) }

// download fetches the candidates of the packages into a folder; needs fetches all that they depend on too.
func (a *apt) download(ctx context.Context, needs bool, to string, packages ...string) ([]string, error) {
	if err := os.MkdirAll(filepath.Join(to, "partial"), 0o755); err != nil {
		return nil, err
	}
	args := append(slices.Clone(a.flags), "download")
	if needs {
		args = append(slices.Clone(a.flags), "-o", "Dir::Cache::archives="+to, "--no-install-recommends", "--download-only", "install")
	}
	if err := a.w.run(ctx, to, nil, "apt-get", append(args, packages...)...); err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(to, "*.deb"))
}

// tree unpacks the packages with all that they depend on, without running anything of theirs. /bin and the like are links
// into /usr, as everywhere in Debian since 12.
func (a *apt) tree(ctx context.Context, to string, packages ...string) error {
	debs, err := a.download(ctx, true, to+"-deb", packages...)
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := a.w.run(ctx, "", nil, "dpkg", "-x", deb, to); err != nil {
			return err
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		from, usr := filepath.Join(to, name), filepath.Join(to, "usr", name)
		if err := os.MkdirAll(usr, 0o755); err != nil {
			return err
		}
		if _, err := os.Stat(from); err == nil {
			if err := errors.Join(a.w.run(ctx, "", nil, "cp", "-al", from+"/.", usr), os.RemoveAll(from)); err != nil {
				return err
			}
		}
		if err := os.Symlink("usr/"+name, from); err != nil {
			return err
		}
	}
	return os.RemoveAll(to + "-deb")
}

// installEmulator unpacks the emulator of another processor's programs.
func installEmulator(ctx context.Context, w *worker) error {
	a, err := newApt(ctx, w)
	if err != nil {
		return err
	}
	debs, err := a.download(ctx, false, filepath.Join(w.dir, "deb"), parts.EmulatorPackage)
	if err != nil {
		return err
	}
	if len(debs) != 1 {
		return fmt.Errorf("apt-get downloaded %d packages, want %s", len(debs), parts.EmulatorPackage)
	}
	return errors.Join(w.run(ctx, "", nil, "dpkg", "-x", debs[0], filepath.Join(w.dir, "root")), a.end())
}

// installMachine makes what package machine boots: an emulator, Debian's kernel and a disk with Debian's systemd. Versions
// vanish from Debian's archive, so it takes what the archive has, and writes down which kernel that is.
func installMachine(ctx context.Context, w *worker) error {
	a, err := newApt(ctx, w)
	if err != nil {
		return err
	}
	emulator, disk := filepath.Join(w.dir, machine.EmulatorDir), filepath.Join(w.dir, "disk")
	w.say("qemu, to be run from the cache")
	if err := a.tree(ctx, emulator, parts.MachineHost...); err != nil {
		return err
	}
	w.say("the kernel and the disk")
	if err := a.tree(ctx, disk, parts.MachineDisk...); err != nil {
		return err
	}
	release, err := takeKernel(w, disk)
	if err != nil {
		return err
	}
	if err := fewModules(ctx, w, disk, release); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"passwd": parts.MachinePasswd, "group": parts.MachineGroup,
		// With one the machine does not take its first boot for the first.
		"machine-id": []byte("0123456789abcdef0123456789abcdef\n"),
	} {
		if err := os.WriteFile(filepath.Join(disk, "etc", name), content, 0o644); err != nil {
			return err
		}
	}
	for _, dir := range []string{"doc", "locale", "man", "info"} {
		if err := os.RemoveAll(filepath.Join(disk, "usr", "share", dir)); err != nil {
			return err
		}
	}
	if err := runFrom(ctx, w, emulator, "usr/sbin/mke2fs", nil, "-q", "-t", "ext4", "-F", "-d", disk, filepath.Join(w.dir, machine.DiskFile), "400M"); err != nil {
		return err
	}
	return errors.Join(os.Rename(filepath.Join(disk, "usr/lib/modules", release), filepath.Join(w.dir, machine.ModulesDir)), os.RemoveAll(disk), a.end())
}

// runFrom runs a program of an unpacked tree with the loader and the libraries of that tree.
func runFrom(ctx context.Context, w *worker, tree, program string, flags []string, args ...string) error {
	libraries, err := filepath.Glob(filepath.Join(tree, "usr", "lib", "*-linux-gnu"))
	if err != nil {
		return err
	}
	all := append([]string{"--library-path", strings.Join(libraries, ":")}, flags...)
	return w.run(ctx, "", nil, filepath.Join(tree, "lib64", "ld-linux-x86-64.so.2"), append(append(all, filepath.Join(tree, program)), args...)...)
}

// kernelVersion is the package's version in a kernel that tells of itself (UTS_VERSION): "… Debian 6.1.192-2 (2026-11-16)".
var kernelVersion = regexp.MustCompile(`Debian (\S+) \(`)

// takeKernel takes the kernel out of the tree, and writes down its version.
func takeKernel(w *worker, tree string) (release string, err error) {
	kernels, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return "", fmt.Errorf("the tree has kernels %v, want one: %w", kernels, err)
	}
	b, err := os.ReadFile(kernels[0])
	if err != nil {
		return "", err
	}
	version := kernelVersion.FindSubmatch(b)
	if version == nil {
		return "", fmt.Errorf("%s does not say which Debian version it is", kernels[0])
	}
	release = strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	return release, errors.Join(
		os.WriteFile(filepath.Join(w.dir, machine.VersionFile), append(version[1], '\n'), 0o644),
		os.Rename(kernels[0], filepath.Join(w.dir, machine.KernelFile)), os.RemoveAll(filepath.Join(tree, "boot")),
	)
}

// fewModules leaves of the kernel's modules those that a machine without devices can use, and lists them anew.
func fewModules(ctx context.Context, w *worker, tree, release string) error {
	all := filepath.Join(tree, "usr/lib/modules", release)
	if err := os.Rename(filepath.Join(all, "kernel"), filepath.Join(all, "every")); err != nil {
		return err
	}
	for _, name := range parts.MachineModules {
		to := filepath.Join(all, "kernel", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.Rename(filepath.Join(all, "every", name), to)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(all, "every")); err != nil {
		return err
	}
	// kmod does what the name says by which it is called.
	return runFrom(ctx, w, tree, "usr/bin/kmod", []string{"--argv0", "depmod"}, "-b", filepath.Join(tree, "usr"), release)
}
