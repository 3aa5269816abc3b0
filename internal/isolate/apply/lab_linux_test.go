package apply_test

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate/fleet"
	"github.com/vallum/vallum/internal/isolate/ipnet"
	"github.com/vallum/vallum/internal/notrun"
)

// program is the real binary, built once.
var program string

func TestMain(m *testing.M) {
	if addresses := os.Getenv(listenEnv); addresses != "" {
		pose(addresses)
		return
	}
	// These tests wait for what does not come far more than they compute: on two cores two at a time take minutes.
	flag.Parse()
	if n, err := strconv.Atoi(flag.Lookup("test.parallel").Value.String()); err == nil && n < atOnce {
		_ = flag.Set("test.parallel", strconv.Itoa(atOnce))
	}
	dir, err := os.MkdirTemp("", "vallum-isolate-*")
	if err != nil {
		panic(err)
	}
	if os.Geteuid() == 0 {
		program = filepath.Join(dir, "vallum")
		if out, err := exec.Command("go", "build", "-tags", "grpcnotrace", "-o", program, "github.com/vallum/vallum/cmd/vallum").CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%v: %s", err, out))
		}
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// atOnce is how many tests run side by side at least.
const atOnce = 10

// needRoot skips aloud without root, and never in CI.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		notrun.For(t, "isolate's tests make network namespaces and need root")
	}
}

// space is a network namespace.
type space struct{ handle netns.NsHandle }

func newSpace(t *testing.T) *space {
	t.Helper()
	made := make(chan any)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and with it what it changed
		h, err := netns.New()
		if err != nil {
			made <- err
			return
		}
		made <- h
	}()
	switch v := (<-made).(type) {
	case netns.NsHandle:
		s := &space{v}
		t.Cleanup(func() { _ = s.handle.Close() })
		s.do(func() { must(t, netlink.LinkSetUp(link(t, "lo"))) })
		return s
	default:
		t.Fatal("making a network namespace: ", v)
		return nil
	}
}

// do runs f inside the namespace. When f ends its test, it ends here too.
func (s *space) do(f func()) {
	done, returned := make(chan struct{}), false
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := netns.Set(s.handle); err != nil {
			panic(err)
		}
		f()
		returned = true
	}()
	<-done
	if !returned {
		runtime.Goexit()
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

// host is a machine on the lab's one Ethernet: a node of the fleet, or an outsider.
type host struct {
	*space
	name, key, device string
	under, over       netip.Addr
	under6, over6     netip.Addr
	dir               string
}

// lab is hosts on a switch, and who signs for the fleet.
type lab struct {
	t       *testing.T
	sw      *space
	hosts   map[string]*host
	order   []string
	private string
	public  string
	serial  uint64
}

var labs atomic.Int32

// newLab makes the hosts; those whose name begins with x are outsiders.
func newLab(t *testing.T, names ...string) *lab {
	t.Helper()
	needRoot(t)
	t.Parallel()
	l := &lab{t: t, sw: newSpace(t), hosts: map[string]*host{}, order: names}
	var err error
	l.private, l.public, err = fleet.NewKey("lab")
	must(t, err)
	l.sw.do(func() {
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "sw"}}))
		must(t, netlink.LinkSetUp(link(t, "sw")))
	})
	number := labs.Add(1)
	for i, name := range names {
		h := &host{space: newSpace(t), name: name, dir: t.TempDir(), device: fmt.Sprintf("vw%d%s%d", os.Getpid()%100000, name, number)}
		h.under, h.over = netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)})
		h.under6, h.over6 = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1)), netip.MustParseAddr(fmt.Sprintf("fd00:99::%d", i+1))
		l.hosts[name] = h
		l.plug(h)
		must(t, os.Chmod(h.dir, 0o700))
		must(t, os.WriteFile(h.file("hosts"), []byte("127.0.0.1 localhost\n"), 0o644))
		must(t, os.WriteFile(h.file("vallum.yaml"), fmt.Appendf(nil, "isolate: {fleet_key: %q, device: %s, allow: [{name: ssh, port: 22}]}\n", l.public, h.device), 0o644))
		if !strings.HasPrefix(name, "x") {
			out, _ := h.must(t, "keygen")
			h.key = strings.TrimSpace(out)
			t.Cleanup(func() { h.must(t, "down") })
		}
	}
	return l
}

// plug connects a host to the switch.
func (l *lab) plug(h *host) {
	l.sw.do(func() {
		peer := "eth0"
		must(l.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "to" + h.name}, PeerName: peer, PeerNamespace: netlink.NsFd(h.handle)}))
		port := link(l.t, "to"+h.name)
		must(l.t, netlink.LinkSetMaster(port, link(l.t, "sw")))
		must(l.t, netlink.LinkSetUp(port))
	})
	h.do(func() {
		eth := link(l.t, "eth0")
		for _, a := range []netip.Prefix{netip.PrefixFrom(h.under, 24), netip.PrefixFrom(h.under6, 64)} {
			must(l.t, netlink.AddrAdd(eth, &netlink.Addr{IPNet: ipnet.Of(a), Flags: unix.IFA_F_NODAD}))
		}
		must(l.t, netlink.LinkSetUp(eth))
		// A default route, so that a dead tunnel has somewhere to leak to.
		must(l.t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.IPv4(192, 0, 2, 254)}))
	})
}

func (h *host) file(name string) string { return filepath.Join(h.dir, name) }

// sign makes a manifest of the named nodes with the next serial and gives it to them; edit may change it.
func (l *lab) sign(edit func(*fleet.Manifest), names ...string) []byte {
	l.t.Helper()
	return l.signAt(time.Now(), edit, names...)
}

// signAt signs as if it were that time.
func (l *lab) signAt(now time.Time, edit func(*fleet.Manifest), names ...string) []byte {
	l.t.Helper()
	l.serial++
	m := &fleet.Manifest{
		Format: 1, Fleet: "lab", Serial: l.serial, Expires: time.Now().Add(time.Hour), APIPort: 8000,
		Overlay: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("fd00:99::/64")},
	}
	for _, name := range names {
		h := l.hosts[name]
		role := fleet.RoleVLLM
		if strings.HasPrefix(name, "g") {
			role = fleet.RoleGateway
		}
		m.Nodes = append(m.Nodes, fleet.Node{
			Name: name, PublicKey: h.key, Endpoint: netip.AddrPortFrom(h.under, 51820), Addresses: []netip.Addr{h.over, h.over6}, Roles: []string{role},
		})
	}
	if edit != nil {
		edit(m)
	}
	signed, err := fleet.Sign(m, l.private, now)
	must(l.t, err)
	for _, name := range names {
		must(l.t, os.WriteFile(l.hosts[name].file("manifest.signed"), signed, 0o600))
	}
	return signed
}

// command is vallum isolate inside the host.
func (h *host) command(args ...string) *exec.Cmd {
	c := exec.Command(program, append([]string{"isolate", args[0], "--state", h.dir}, args[1:]...)...)
	switch args[0] {
	case "plan", "up", "env", "exec":
		c.Args = append(c.Args[:5:5], append([]string{"--config", h.file("vallum.yaml")}, c.Args[5:]...)...)
	}
	c.Env = append(os.Environ(), "SSH_CONNECTION=")
	return c
}

// run returns what the command printed, without the breaks for a terminal, and its exit status.
func (h *host) run(args ...string) (out, errs string, code int) {
	c := h.command(args...)
	var o, e bytes.Buffer
	c.Stdout, c.Stderr = &o, &e
	h.do(func() { _ = c.Start() })
	_ = c.Wait()
	out = o.String()
	switch args[0] {
	case "audit", "status", "verify", "up", "down":
		if !slices.Contains(args, "--json") {
			out = joined(out)
		}
	}
	return out, joined(e.String()), c.ProcessState.ExitCode()
}

func (h *host) must(t *testing.T, args ...string) (out, errs string) {
	t.Helper()
	out, errs, code := h.run(args...)
	if code != 0 {
		t.Fatalf("isolate %s on %s: exit %d\n%s%s", args, h.name, code, out, errs)
	}
	return out, errs
}

// rising is an up that waits to be confirmed.
type rising struct {
	cmd  *exec.Cmd
	rest chan string
}

// rise starts up and returns when it has applied everything.
func (h *host) rise(t *testing.T, args ...string) *rising {
	t.Helper()
	return h.riseBy(t, h.command(append([]string{"up", "--hosts", h.file("hosts"), "--accept-cut"}, args...)...))
}

// riseBy is rise by a command of the caller's.
func (h *host) riseBy(t *testing.T, c *exec.Cmd) *rising {
	t.Helper()
	errs, err := c.StderrPipe()
	must(t, err)
	h.do(func() { must(t, c.Start()) })
	r := &rising{c, make(chan string, 1)}
	in := bufio.NewReader(errs)
	var said strings.Builder
	for {
		line, err := in.ReadString('\n')
		said.WriteString(line)
		if err != nil {
			_ = c.Wait()
			t.Fatalf("up on %s ended: %v\n%s", h.name, c.ProcessState, said.String())
		}
		if strings.Contains(line, "applied; confirm") {
			break
		}
	}
	go func() {
		b, _ := io.ReadAll(in)
		r.rest <- joined(said.String() + string(b))
	}()
	return r
}

// end waits for up and returns its exit status and what it said.
func (r *rising) end() (code int, said string) {
	said = <-r.rest
	_ = r.cmd.Wait()
	return r.cmd.ProcessState.ExitCode(), said
}

// up applies and confirms.
func (h *host) up(t *testing.T) {
	t.Helper()
	r := h.rise(t)
	h.must(t, "confirm")
	if code, said := r.end(); code != 0 {
		t.Fatalf("up on %s: exit %d\n%s", h.name, code, said)
	}
}

// echo answers every line with itself, on all addresses.
func (h *host) echo(t *testing.T, port uint16) {
	t.Helper()
	h.do(func() {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		must(t, err)
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
	})
}

// dial opens a connection; the error is the kernel's, or a timeout.
func (h *host) dial(addr netip.Addr, port uint16, wait time.Duration) (c net.Conn, err error) {
	h.do(func() { c, err = net.DialTimeout("tcp", netip.AddrPortFrom(addr, port).String(), wait) })
	return c, err
}

// reaches reports whether the host can talk with the address.
func (h *host) reaches(addr netip.Addr, port uint16, wait time.Duration) bool {
	c, err := h.dial(addr, port, wait)
	if err != nil {
		return false
	}
	defer c.Close()
	return says(c, wait) == nil
}

func says(c net.Conn, wait time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("prompt\n")); err != nil {
		return err
	}
	b := make([]byte, 7)
	_, err := io.ReadFull(c, b)
	return err
}

const (
	open   = 8 * time.Second        // what should get through may take that long on a busy machine
	closed = 700 * time.Millisecond // what should not get through has that long to do it
)

// eventually waits for a condition.
func eventually(t *testing.T, what string, wait time.Duration, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(wait); ; <-time.After(20 * time.Millisecond) {
		if holds() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s it still does not hold: %s", wait, what)
		}
	}
}
