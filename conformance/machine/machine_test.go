package machine

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAModuleComesAfterWhatItNeeds(t *testing.T) {
	dir := t.TempDir()
	const dep = "kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/jbd2/jbd2.ko\nkernel/lib/crc16.ko:\nkernel/fs/jbd2/jbd2.ko:\nkernel/net/nf-tables.ko:\n"
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(dep), 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := readModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.order("ext4", "nf_tables")
	if want := []string{"kernel/fs/jbd2/jbd2.ko", "kernel/lib/crc16.ko", "kernel/fs/ext4/ext4.ko", "kernel/net/nf-tables.ko"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v %v, want %v", got, err, want)
	}
	if _, err := m.order("btrfs"); err == nil || !strings.Contains(err.Error(), `no module "btrfs"`) {
		t.Errorf("a module that is not there: %v", err)
	}
}

// Whatever reads cpio reads what the kernel is given: each folder before what lies in it, and each file whole.
func TestAnArchiveIsWhatCpioReads(t *testing.T) {
	var b bytes.Buffer
	a := newArchive(&b)
	a.file("init", 0o755, []byte("first"))
	a.file("a/b/c", 0o644, []byte("four"))
	a.file("a/b/d", 0o600, nil)
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%4 != 0 {
		t.Errorf("%d bytes", b.Len())
	}
	var names []string
	for rest := b.Bytes(); len(rest) > 0; {
		var size, length int
		for at, to := range map[int]*int{54: &size, 94: &length} {
			for _, c := range rest[at : at+8] {
				*to = *to*16 + strings.IndexByte("0123456789abcdef", c)
			}
		}
		name := string(rest[110 : 110+length-1])
		begin := (110 + length + 3) &^ 3
		names = append(names, name+"="+string(rest[begin:begin+size]))
		rest = rest[(begin+size+3)&^3:]
	}
	if want := []string{"init=first", "a=", "a/b=", "a/b/c=four", "a/b/d=", "TRAILER!!!="}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}

func TestAMachineThatIsNotNamedWholeIsRefused(t *testing.T) {
	for _, o := range []Options{{}, {Part: "p", Dir: "d"}, {Part: "p", First: "f"}, {Dir: "d", First: "f"}} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "needs") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// What becomes of a machine is seen by whoever reads its lines, an emulator that does not start too.
func TestAnEmulatorThatFailsSaysSo(t *testing.T) {
	if _, err := exec.LookPath("cp"); err != nil {
		t.Fatal(err)
	}
	part, dir := t.TempDir(), t.TempDir()
	for name, content := range map[string]string{
		DiskFile: "disk", "modules/modules.dep": "virtio_pci.ko:\nvirtio_blk.ko:\ncrc32c_generic.ko:\next4.ko:\n",
		"modules/virtio_pci.ko": "", "modules/virtio_blk.ko": "", "modules/crc32c_generic.ko": "", "modules/ext4.ko": "",
		"host/usr/lib/x86_64-linux-gnu/none": "", "host/lib64/ld-linux-x86-64.so.2": "#!/bin/sh\necho a line\necho the reason >&2\nexit 3\n", "first": "f",
	} {
		file := filepath.Join(part, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m, err := New(Options{Part: part, Dir: dir, First: filepath.Join(part, "first")})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range m.Lines() {
		lines = append(lines, line)
	}
	m.PowerOff()
	if len(lines) != 2 || lines[0] != "a line" || !strings.Contains(lines[1], "exit status 3: the reason") {
		t.Errorf("%q", lines)
	}
}
