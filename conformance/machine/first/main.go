// Command first is the first process of a virtual machine: it loads what the disk needs, puts what the proof brings onto
// the disk, and becomes the disk's systemd. It refuses to run as anything but process 1.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	disk     = "/dev/vda"
	diskWait = 30 * time.Second
	root     = "/root"
	systemd  = "/usr/lib/systemd/systemd"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "first: this is not the first process of a machine")
		os.Exit(2)
	}
	err := run()
	fmt.Println("first:", err)
	// The kernel panics when its first process ends, which whoever reads the console sees.
	os.Exit(1)
}

// run returns only with an error.
func run() error {
	if err := mountKernel(); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := waitFor(disk, diskWait); err != nil {
		return err
	}
	if err := unix.Mount(disk, root, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mounting the disk: %w", err)
	}
	if err := bring("/bring", root); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(dir, root+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", dir, err)
		}
	}
	if err := errors.Join(os.Chdir(root), unix.Mount(root, "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")); err != nil {
		return fmt.Errorf("changing to the disk: %w", err)
	}
	return syscall.Exec(systemd, []string{systemd}, []string{"PATH=/usr/sbin:/usr/bin", "TERM=dumb"})
}

func mountKernel() error {
	for _, m := range []struct{ kind, at string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mounting %s: %w", m.kind, err)
		}
	}
	return nil
}

// loadModules loads those that lie in /modules, in the order of the list.
func loadModules() error {
	list, err := os.Open("/modules/list")
	if err != nil {
		return err
	}
	defer list.Close()
	for s := bufio.NewScanner(list); s.Scan(); {
		f, err := os.Open(filepath.Join("/modules", s.Text()))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		if err := errors.Join(f.Close(), err); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("loading %s: %w", s.Text(), err)
		}
	}
	return nil
}

func waitFor(file string, wait time.Duration) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(wait); ; <-tick.C {
		_, err := os.Stat(file)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// bring puts onto the disk what is not there yet: at the second boot of a disk all of it is.
func bring(from, to string) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		at := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(at, 0o755)
		}
		if _, err := os.Lstat(at); err == nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(at, b, info.Mode().Perm())
	})
}
