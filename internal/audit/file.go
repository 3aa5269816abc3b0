package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Names in the directory of a log, besides those of package chain. Everything else in it is left alone.
const (
	lockName    = "lock"    // held by the one process that writes
	keyName     = "log.key" // the signing key, unless Options.KeyFile names another
	reserveName = "reserve" // room on disk for the ends of admitted requests
)

// file is what the log needs of a segment; a test hands in one that fails.
type file interface {
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
}

// disk is what the log needs of a file system that can be full.
type disk struct {
	open    func(path string) (file, error)          // for writing at offsets, made with mode 0600 if need be
	reserve func(path string, size int64) error      // make path hold size bytes of real room
	release func(path string) error                  // give that room back
	free    func(dir string) (bytes uint64, ok bool) // room left; ok is false where it cannot be known
	remove  func(path string) error                  // a segment that is too old
}

func osDisk() disk {
	return disk{
		open:    func(path string) (file, error) { return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) },
		reserve: reserve,
		release: func(path string) error { return os.Truncate(path, 0) },
		free:    freeBytes,
		remove:  os.Remove,
	}
}

// reserve makes a file of size bytes. Zeros are written where the system has no call for it,
// which reserves nothing on a file system that compresses: docs/audit.md says so.
func reserve(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // holds nothing but room
	if info, err := f.Stat(); err == nil && info.Size() >= size {
		return f.Truncate(size)
	}
	err = allocate(f, size)
	if errors.Is(err, errors.ErrUnsupported) {
		err = writeZeros(f, size)
	}
	if err != nil {
		return errors.Join(err, f.Truncate(0)) // half a reserve would only keep the disk full
	}
	return nil
}

func writeZeros(f *os.File, size int64) error {
	zeros := make([]byte, 1<<16)
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return err
		}
	}
	return f.Sync()
}

func replaceFile(path string, content []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	return os.Rename(path+".new", path)
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // has no such call
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// prepareDir makes dir, or refuses one that others can read or write: who can write it can
// cut the log and the key, who can read it learns who asked for what.
func prepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the audit directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("audit directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("audit directory %q is not a directory", dir)
	}
	return private(dir, info)
}

func private(path string, info fs.FileInfo) error {
	if runtime.GOOS == "windows" { // its permissions are not in the mode
		return nil
	}
	if loose := info.Mode().Perm() & 0o077; loose != 0 {
		return fmt.Errorf("%q has mode %04o, so others than its owner can get at it; run: chmod %04o %s",
			path, info.Mode().Perm(), info.Mode().Perm()&^0o077, path)
	}
	return nil
}

// allocateReserve keeps room on the disk; the caller holds l.w.
func (l *Log) allocateReserve() error {
	if l.reserved {
		return nil
	}
	if err := l.opts.disk.reserve(filepath.Join(l.dir, reserveName), l.opts.ReserveBytes); err != nil {
		return fmt.Errorf("keeping %d bytes of disk in reserve: %w", l.opts.ReserveBytes, err)
	}
	l.reserved = true
	return nil
}

// releaseReserve gives the room to the ends of admitted requests; the caller holds l.w.
func (l *Log) releaseReserve() {
	if !l.reserved {
		return
	}
	if err := l.opts.disk.release(filepath.Join(l.dir, reserveName)); err != nil {
		l.problem(fmt.Errorf("releasing the disk reserve: %w", err))
		return
	}
	l.reserved = false
}
