package observe

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/notrun"
)

// asleep is a process that calls itself so, does nothing until the test is over, and holds the files.
func asleep(t *testing.T, name string, attr *syscall.SysProcAttr, files ...*os.File) *exec.Cmd {
	t.Helper()
	c := exec.Command("sleep", "600")
	c.Args[0] = name
	c.ExtraFiles, c.SysProcAttr = files, attr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c
}

// Whoever looks at processes in their order meets one of the heirs behind vLLM.
func TestASocketThatAnotherHoldsTooIsVLLMs(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	asleep(t, "heir", nil, file)
	engine := asleep(t, "vllm", nil, file)
	asleep(t, "heir", nil, file)
	for _, c := range []interface{ Close() error }{l, file} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	list, _, err := Sockets()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(k isolate.Socket) bool { return k.Local == at && k.Namespace == "" })
	if i < 0 || list[i].PID != engine.Process.Pid || list[i].Of != "vllm" {
		t.Errorf("%s is %+v, want vLLM's, process %d", at, list[max(i, 0)], engine.Process.Pid)
	}
}

// A curl within a container must not hide what vLLM has there by ending.
func TestANamespaceIsLookedIntoAfterItsFirstProcessEnded(t *testing.T) {
	if os.Getuid() != 0 {
		notrun.For(t, "network namespaces need root")
	}
	c := asleep(t, "curl", &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET})
	held := map[string]netns.NsHandle{}
	if err := hold(held, c.Process.Pid); err != nil {
		t.Fatal(err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if _, ours := held[own]; len(held) != 1 || ours {
		t.Fatalf("held: %v, ours is %s", held, own)
	}
	for _, ns := range held {
		if list, err := socketsOf(ns, nil); err != nil || len(list) != 0 {
			t.Errorf("an empty namespace, its process ended: %v, %v", list, err)
		}
		if past, err := wayPast(ns); err != nil || past != "" {
			t.Errorf("%q, %v", past, err)
		}
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	}
}
