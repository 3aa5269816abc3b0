package nodes

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/internal/notrun"
)

const (
	within = 10 * time.Second        // for what should happen
	never  = 1500 * time.Millisecond // for what should not
)

// A member and an outsider see what they should, before up and after it, and the recording sees it too.
func TestTheLabIsANetworkAndVallumRunsInIt(t *testing.T) {
	if os.Geteuid() != 0 {
		notrun.For(t, "%v", ErrNotRoot)
	}
	dir := t.TempDir()
	binary, err := realvallum.Build(t.Context(), "../..", dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(t.Context(), Options{Dir: dir, Vallum: binary}, []string{"a", "b"}, []string{"x"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	a, b, x := l.Node("a"), l.Node("b"), l.Node("x")
	at := netip.AddrPortFrom(netip.IPv4Unspecified(), 7000)
	listener, err := a.Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	if got, err := a.Listeners(); err != nil || len(got) != 1 || got[0].Port() != 7000 {
		t.Errorf("listeners of a: %v %v", got, err)
	}
	says := func(from *Node, to netip.Addr, wait time.Duration) error {
		c, err := from.Dial("tcp", netip.AddrPortFrom(to, 7000), wait)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(wait))
		fmt.Fprint(c, "in clear")
		_, err = io.ReadFull(c, make([]byte, 8))
		return err
	}
	needle := [][]byte{[]byte("in clear")}

	clear, err := l.Record()
	if err != nil {
		t.Fatal(err)
	}
	if err := says(x, a.Under, within); err != nil {
		t.Fatal("the outsider does not reach an open port, so that nothing would be shown: ", err)
	}
	if err := clear.Stop(); err != nil {
		t.Fatal(err)
	}
	if found := clear.Find(needle); len(found) != 2 {
		t.Errorf("two directions in clear, and the recording has %v", found)
	}

	for _, n := range []*Node{a, b} {
		if err := n.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	inside, err := l.Record()
	if err != nil {
		t.Fatal(err)
	}
	if err := says(b, a.Over, within); err != nil {
		t.Error("the member does not reach the other over the overlay: ", err)
	}
	if err := x.RouteBy(a.Over); err != nil {
		t.Fatal(err)
	}
	if says(x, a.Under, never) == nil || says(x, a.Over, never) == nil {
		t.Error("the outsider reaches the member")
	}
	if err := inside.Stop(); err != nil {
		t.Fatal(err)
	}
	if found := inside.Find(needle); len(found) != 0 || len(inside.Flows(Tunnel)) != 2 {
		t.Errorf("in clear: %v; the tunnel: %v", found, inside.Flows(Tunnel))
	}
	procs, err := a.Processes()
	if err != nil || !strings.Contains(fmt.Sprint(procs), "--child") {
		t.Errorf("a's processes lack the tunnel: %v %v", procs, err)
	}
	l.Close()
	for _, p := range procs {
		if args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID)); strings.Contains(string(args), "isolate") {
			t.Errorf("%v outlived its machine", p)
		}
	}
}

// TCP is put together whatever order and how often its segments came in.
func TestSegmentsArePutTogether(t *testing.T) {
	tcp := Flow{Protocol: "tcp"}
	got := string(stream(tcp, []segment{{0xfffffffe, []byte("abc")}, {4, []byte("gh")}, {1, []byte("def")}, {0xffffffff, []byte("bcd")}}))
	if got != "abcdefgh" {
		t.Errorf("%q", got)
	}
}
