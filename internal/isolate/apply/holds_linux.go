package apply

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/nft"
	"github.com/vallum/vallum/internal/isolate/observe"
	"github.com/vallum/vallum/internal/isolate/tunnel"
)

// Holds says what is missing of the plan that is applied, each thing in a line, and what to do; nil when all of it holds.
func (s State) Holds() error {
	r, _, err := s.appliedRecord()
	if err != nil {
		return err
	}
	if r == nil {
		return errors.New("no overlay is applied on this node; vallum isolate up")
	}
	return s.holds(r)
}

func (s State) holds(r *record) error {
	if err := s.missing(r); err != nil {
		return fmt.Errorf("the overlay does not hold: %w\nhint: vallum isolate up repairs it, without asking", err)
	}
	return nil
}

func (s State) missing(r *record) error {
	p := r.Plan
	return errors.Join(s.deviceHolds(p), nft.Check(p.Rules), tunnel.Prohibited(p), hostsHold(r.Hosts, p.Hosts))
}

// deviceHolds asks for what hangs on the device in the order in which one makes the next impossible: one thing is said,
// not what follows from it.
func (s State) deviceHolds(p *isolate.Plan) error {
	if err := tunnel.Up(p); err != nil {
		ours, _ := controller(p.Device) // 0: nobody answers for it
		return fmt.Errorf("%w%s", err, heldBy(p.Port, ours))
	}
	if err := s.carried(p); err != nil {
		return err
	}
	return errors.Join(tunnel.Peers(p, s.keys()), tunnel.Routed(p))
}

// carried says why no process of ours carries the device's packets: another one may have taken its place, or its UDP port,
// of which neither the device nor wireguard-go's own control says anything. The kernel's device needs none.
func (s State) carried(p *isolate.Plan) error {
	if !tunnel.Userspace(p.Device) {
		return nil
	}
	supervisor, err := s.tunnelPID()
	if err != nil {
		return err
	}
	pid, err := controller(p.Device)
	switch {
	case err != nil:
		return fmt.Errorf("nobody answers for device %q: %w", p.Device, err)
	case supervisor != 0 && pid == 0:
		return listens(pid, p) // it is in a process namespace into which this one does not see
	case supervisor == 0 || insideID(parent(pid)) != supervisor || !carries(pid, p.Device):
		return fmt.Errorf("the tunnel that up started does not carry device %q: process %d has taken its place; end that", p.Device, pid)
	}
	return listens(pid, p)
}

// controller is the process that answers for a device of wireguard-go, as the kernel knows it: the one that listens on its
// socket (unix(7), SO_PEERCRED); 0 for one that cannot be seen from here.
func controller(device string) (int, error) {
	c, err := net.Dial("unix", "/var/run/wireguard/"+device+".sock")
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var who *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { who, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	return int(who.Pid), nil
}

// parent is who started a process; 0 when it has ended.
func parent(pid int) int { return lastNumber(pid, "PPid:") }

// insideID is a process's number in the innermost namespace that it is in, where it has written it down.
func insideID(pid int) int { return lastNumber(pid, "NSpid:") }

func lastNumber(pid int, field string) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			n, _ := strconv.Atoi(f[len(f)-1]) // the kernel writes numbers
			return n
		}
	}
	return 0
}

// carries reports whether the process has the device's other end open (Linux: tun_chr_show_fdinfo).
func carries(pid int, device string) bool {
	dir := fmt.Sprintf("/proc/%d/fdinfo", pid)
	return slices.ContainsFunc(entries(dir), func(fd string) bool {
		b, err := os.ReadFile(filepath.Join(dir, fd))
		return err == nil && strings.Contains(string(b), "\niff:\t"+device+"\n")
	})
}

// rebinds is how long wireguard-go may take to open its sockets anew, which it does some time after its device came up.
const rebinds = time.Second

// listens says why the process does not receive what the other nodes send, unless that is over soon.
func listens(pid int, p *isolate.Plan) error {
	for end := time.Now().Add(rebinds); ; <-time.After(20 * time.Millisecond) {
		if err := listensNow(pid, p); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// listensNow is listens at one moment. Of process 0, which cannot be seen, it asks that nobody who can be seen has the port.
func listensNow(pid int, p *isolate.Plan) error {
	held := map[string]bool{}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	for _, fd := range entries(dir) {
		if to, err := os.Readlink(filepath.Join(dir, fd)); err == nil {
			held[to] = true
		}
	}
	by := ""
	if pid == 0 {
		by = heldBy(p.Port, pid)
	}
	got := map[uint8]bool{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		all, err := netlink.SocketDiagUDP(family)
		if err != nil {
			return fmt.Errorf("listing UDP sockets: %w", err)
		}
		for _, k := range all {
			got[family] = got[family] || k.ID.SourcePort == p.Port && (held[fmt.Sprintf("socket:[%d]", k.INode)] || pid == 0 && by == "")
		}
	}
	missing := !got[unix.AF_INET] && !got[unix.AF_INET6]
	for _, peer := range p.Peers {
		missing = missing || peer.Endpoint.Addr().Is4() && !got[unix.AF_INET] || peer.Endpoint.Addr().Is6() && !got[unix.AF_INET6]
	}
	if missing && by == "" {
		by = heldBy(p.Port, pid)
	}
	if missing {
		return fmt.Errorf("the tunnel's process does not listen on UDP port %d, so that no packet of the other nodes comes in%s", p.Port, by)
	}
	return nil
}

// heldBy names who has the port and is not the process; "" for nobody who can be seen.
func heldBy(port uint16, but int) string {
	all, _, err := observe.Sockets()
	if err != nil {
		return ""
	}
	for _, k := range all {
		if k.Protocol == "udp" && k.Namespace == "" && k.Local.Port() == port && k.PID != 0 && k.PID != but {
			return fmt.Sprintf("; UDP port %d of the tunnel: %s (%d) has taken it; end that, or give the node another port in the manifest", port, k.Process, k.PID)
		}
	}
	return ""
}

// stranger says who has the tunnel's port in the place of who answers for the device.
func stranger(p *isolate.Plan) error {
	ours, _ := controller(p.Device) // 0: nobody answers for it
	if by := heldBy(p.Port, ours); by != "" {
		return errors.New("the tunnel does not come up" + by)
	}
	return nil
}

// entries are the names in a folder of /proc; none when what it stands for has ended.
func entries(dir string) (names []string) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// soon waits for a tunnel that has just begun: wireguard-go opens its port after it has heard that its device is up.
func soon(wait time.Duration, holds func() error) error {
	for end := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		if err := holds(); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// hostsHold says whether our lines stand in the hosts file: without them the resolver is asked for the members' names, in
// clear.
func hostsHold(file string, lines []string) error {
	if file == "" {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading the hosts file: %w", err)
	}
	_, rest, _ := strings.Cut(string(b), hostsBegin+"\n")
	ours, _, ended := strings.Cut(rest, hostsEnd+"\n")
	if !ended || ours != strings.Join(lines, "\n")+"\n" {
		return fmt.Errorf("the members' names are not in %s as planned: vLLM would ask a resolver for them, in clear", file)
	}
	return nil
}
