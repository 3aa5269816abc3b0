package machine

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// archive writes the kernel's initramfs format: cpio, newc (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	w    *bufio.Writer
	ino  int
	made map[string]bool
	err  error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriter(w), made: map[string]bool{}}
}

// folder adds a folder with all above it.
func (a *archive) folder(name string) {
	if name == "." || a.made[name] {
		return
	}
	a.folder(path.Dir(name))
	a.made[name] = true
	a.entry(name, fs.ModeDir|0o755, nil)
}

// file adds a file with the folders above it.
func (a *archive) file(name string, mode fs.FileMode, content []byte) {
	a.folder(path.Dir(name))
	a.entry(name, mode, content)
}

func (a *archive) entry(name string, mode fs.FileMode, content []byte) {
	kind := uint32(0o100000)
	if mode.IsDir() {
		kind = 0o040000
	}
	a.ino++
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, kind|uint32(mode.Perm()), 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.write(padded(header + name + "\x00"))
	a.write(padded(string(content)))
}

// close writes the end and reports the first error.
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil)
	if a.err == nil {
		a.err = a.w.Flush()
	}
	return a.err
}

func (a *archive) write(s string) {
	if a.err == nil {
		_, a.err = a.w.WriteString(s)
	}
}

// padded is s up to a multiple of four bytes.
func padded(s string) string { return s + strings.Repeat("\x00", -len(s)&3) }
