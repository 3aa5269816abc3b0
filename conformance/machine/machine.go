// Package machine boots Debian's kernel and systemd in an emulated machine that has a disk, two serial lines and no
// network, and hands on what a program inside it says. It refuses to let the machine outlive its owner, and to give it
// anything of this machine's but files that are named.
package machine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// What is in the folder of the part: the emulator with its libraries, the kernel, its modules, and the disk.
const (
	EmulatorDir = "host"
	KernelFile  = "vmlinuz"
	ModulesDir  = "modules"
	DiskFile    = "disk.img"
	VersionFile = "version" // of the kernel's package
)

// diskModules are what the kernel needs to read the disk; all others are on the disk.
var diskModules = []string{"virtio_pci", "virtio_blk", "crc32c_generic", "ext4"}

// File is a file that the disk gets at the first boot.
type File struct {
	Mode    fs.FileMode
	Content []byte
}

// Options of a Machine. The zero value is refused: Part, Dir and First have to be named.
type Options struct {
	Part   string          // the part's folder
	Dir    string          // the disk, the console's log and the rest lie here
	First  string          // the static program that the kernel starts
	Bring  map[string]File // by path on the disk, without a leading slash
	Memory int             // MiB; 0 is 768
	Cores  int             // 0 is 2
}

// Machine is one that can be started, and started again with the same disk.
type Machine struct {
	Options
	cmd   *exec.Cmd
	ended chan struct{}
	lines chan string
}

// New makes the machine's own disk and what it boots from.
func New(o Options) (*Machine, error) {
	if o.Part == "" || o.Dir == "" || o.First == "" {
		return nil, errors.New("a machine needs the part's folder, a folder of its own and a first program")
	}
	if o.Memory == 0 {
		o.Memory = 768
	}
	if o.Cores == 0 {
		o.Cores = 2
	}
	m := &Machine{Options: o}
	// With its holes, of which it has many.
	if out, err := exec.Command("cp", "--sparse=always", filepath.Join(o.Part, DiskFile), m.file(DiskFile)).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copying the disk: %w: %s", err, out)
	}
	return m, m.writeInitramfs()
}

func (m *Machine) file(name string) string { return filepath.Join(m.Dir, name) }

// Console is the file with what the kernel and systemd have said.
func (m *Machine) Console() string { return m.file("console.log") }

func (m *Machine) writeInitramfs() (err error) {
	f, err := os.Create(m.file("initramfs"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := newArchive(f)
	first, err := os.ReadFile(m.First)
	if err != nil {
		return err
	}
	a.file("init", 0o755, first)
	for _, dir := range []string{"dev", "proc", "sys", "root"} {
		a.folder(dir)
	}
	dir := filepath.Join(m.Part, ModulesDir)
	all, err := readModules(dir)
	if err != nil {
		return err
	}
	files, err := all.order(diskModules...)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		a.file("modules/"+filepath.Base(file), 0o644, b)
		fmt.Fprintln(&list, filepath.Base(file))
	}
	a.file("modules/list", 0o644, []byte(list.String()))
	a.folder("bring")
	for name, one := range m.Bring {
		a.file("bring/"+name, one.Mode, one.Content)
	}
	return a.close()
}

// Start switches the machine on. What is said on the second serial line comes as Lines; ctx ends the machine.
func (m *Machine) Start(ctx context.Context) error {
	emulator := filepath.Join(m.Part, EmulatorDir)
	share := filepath.Join(emulator, "usr", "share")
	libraries, err := filepath.Glob(filepath.Join(emulator, "usr", "lib", "*-linux-gnu"))
	if err != nil || len(libraries) == 0 {
		return fmt.Errorf("the emulator has no libraries in %q: %w", emulator, err)
	}
	console, err := os.OpenFile(m.Console(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if err := console.Close(); err != nil {
		return err
	}
	// With its own loader and libraries: it does not matter which this machine has.
	m.cmd = exec.CommandContext(ctx, filepath.Join(emulator, "lib64", "ld-linux-x86-64.so.2"), "--library-path", strings.Join(libraries, ":"),
		filepath.Join(emulator, "usr", "bin", "qemu-system-x86_64"), "-L", filepath.Join(share, "qemu"), "-L", filepath.Join(share, "seabios"),
		// It ends where it would reset, and is started again from the same disk: resetting takes this emulator two minutes.
		"-no-reboot", "-no-user-config", "-nodefaults", "-display", "none", "-nic", "none", "-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", fmt.Sprint(m.Cores), "-m", fmt.Sprint(m.Memory),
		"-kernel", filepath.Join(m.Part, KernelFile), "-initrd", m.file("initramfs"),
		"-append", "console=ttyS0 panic=0 systemd.unit=multi-user.target systemd.show_status=0 net.ifnames=0",
		"-drive", "if=virtio,format=raw,file="+m.file(DiskFile),
		"-chardev", "file,id=console,append=on,path="+m.Console(), "-serial", "chardev:console", "-serial", "stdio")
	m.cmd.Dir = m.Dir
	m.cmd.Env = append(os.Environ(), "QEMU_MODULE_DIR="+filepath.Join(libraries[0], "qemu"))
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	m.lines, m.ended = make(chan string, 1024), make(chan struct{})
	started := make(chan error)
	go func() {
		// The death signal hangs on the thread that started the emulator, which therefore stays until that has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var errs bytes.Buffer
		m.cmd.Stderr = &errs
		err := m.cmd.Start()
		started <- err
		if err == nil {
			m.read(out, &errs)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("starting the emulator: %w", err)
	}
	return nil
}

// read hands the lines on until the machine ends.
func (m *Machine) read(out io.Reader, errs *bytes.Buffer) {
	defer close(m.ended)
	defer close(m.lines)
	for s := bufio.NewScanner(out); s.Scan(); {
		m.lines <- strings.TrimRight(s.Text(), "\r")
	}
	if err := m.cmd.Wait(); err != nil && errs.Len() > 0 {
		m.lines <- fmt.Sprintf("the emulator ended: %v: %s", err, errs)
	}
}

// Lines are those of the second serial line; closed when the machine has ended.
func (m *Machine) Lines() <-chan string { return m.lines }

// PowerOff takes the machine's power away, as it stands. What it has not written to the disk is lost.
func (m *Machine) PowerOff() {
	_ = m.cmd.Process.Kill()
	for range m.lines {
	}
	<-m.ended
}
