// Package knock asks a machine, as a stranger would, whether anything of it answers. It refuses to call silence what it
// could not ask: no way there, nobody at the address, or this machine's own rules.
package knock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Wait is how long an answer may take at least. The kernel asks again after a second, and it takes 3 s to learn that nobody
// has an address on its Ethernet (Linux: tcp_syn_retries, neigh/mcast_solicit): less would call a slow or an absent machine
// silent.
const Wait = 4 * time.Second

// LongestWait bounds it: then a question was asked six times.
const LongestWait = time.Minute

// atOnce bounds how many questions are open.
const atOnce = 256

// udpPorts are asked too: WireGuard's, which answers no stranger, and one on which nothing listens and which a
// machine without rules says so of (traceroute's first).
var udpPorts = []uint16{51820, 33434}

// Report is what came of it. The zero Report asked nothing, and is not silent.
type Report struct {
	Asked   int      // ports and echoes that were asked and could have answered
	Answers []string // what answered; a refusal is an answer too, for it came past the rules
	Unasked []string // why some could not be asked, each reason once
	closed  []string
}

// Silent reports whether something was asked, everything could be, and nothing answered.
func (r Report) Silent() bool { return r.Asked > 0 && len(r.Answers) == 0 && len(r.Unasked) == 0 }

// Sample are ports of the range from which the kernel chooses (Linux: ip_local_port_range): most of vLLM's ports are
// there, and no list can name them.
func Sample(n int) []uint16 {
	var list []uint16
	for len(list) < n {
		if p := uint16(32768 + rand.IntN(60999-32768+1)); !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// outcome is one question's answer: nothing of it is set when there was silence.
type outcome struct {
	answer, unasked string
	closed          string // what answered that it is closed
	skipped         bool
}

// Ask tries the TCP ports of an address side by side, and UDP and, where this process may, an echo, each for as long as it
// is told, from Wait on. name adds to a port what it is known for, or "".
func Ask(ctx context.Context, to netip.Addr, wait time.Duration, ports []uint16, name func(uint16) string) Report {
	var r Report
	late := pulse(func() { r = ask(ctx, to, max(wait, Wait), ports, name) })
	return r.unlessLate(late, max(wait, Wait))
}

// unlessLate takes silence back that this machine may not have heard: answers wait in its kernel for a process that it does
// not let run, and the time runs out meanwhile.
func (r Report) unlessLate(late, wait time.Duration) Report {
	if late > wait/4 && len(r.Answers) == 0 {
		r.Unasked = append(r.Unasked, fmt.Sprintf("this machine stood still for %s of the %s in which an answer had to come: ask when it has less to do, or with a longer --wait", late.Round(100*time.Millisecond), wait))
	}
	return r
}

// pulse says how much later than asked for this process was woken, at worst, while f ran.
func pulse(f func()) (late time.Duration) {
	const every = 50 * time.Millisecond
	ended, told := make(chan struct{}), make(chan time.Duration)
	go func() {
		var worst time.Duration
		tick := time.NewTimer(every)
		defer tick.Stop()
		for asked := time.Now(); ; asked = time.Now() {
			select {
			case <-ended:
				told <- worst
				return
			case <-tick.C:
				worst = max(worst, time.Since(asked)-every)
				tick.Reset(every)
			}
		}
	}()
	f()
	close(ended)
	return <-told
}

func ask(ctx context.Context, to netip.Addr, wait time.Duration, ports []uint16, name func(uint16) string) Report {
	questions := make([]func() outcome, 0, len(ports)+len(udpPorts))
	for _, port := range ports {
		questions = append(questions, func() outcome {
			o := tcp(ctx, netip.AddrPortFrom(to, port), wait)
			if known := name(port); known != "" && o.answer != "" {
				o.answer += " (" + known + ")"
			} else if known != "" && o.closed != "" {
				o.closed += " (" + known + ")"
			}
			return o
		})
	}
	for _, port := range udpPorts {
		questions = append(questions, func() outcome { return udp(ctx, netip.AddrPortFrom(to, port), wait) })
	}
	questions = append(questions, func() outcome { return echo(ctx, to, wait) })
	var r Report
	var mu sync.Mutex
	var all sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for _, ask := range questions {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			o := ask()
			mu.Lock()
			defer mu.Unlock()
			r.add(o)
		})
	}
	all.Wait()
	slices.Sort(r.Answers)
	if len(r.closed) > 0 {
		r.Answers = append(r.Answers, refusals(r.closed))
	}
	// The kernel does not tell every question that nobody is there: it bounds how often it says so (icmp_msgs_per_sec).
	if r.Silent() && ctx.Err() == nil && nobody(to) {
		r.Unasked = append(r.Unasked, unreachable)
	}
	slices.Sort(r.Unasked)
	return r
}

// refusals are ports that answered that they are closed, in a line: on a machine without rules that is all of them.
func refusals(closed []string) string {
	slices.SortFunc(closed, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) }) // those with a name first
	more := ""
	if n := len(closed) - shown; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("closed, and says so: %s%s; no rule keeps strangers from them", strings.Join(closed[:min(shown, len(closed))], ", "), more)
}

// shown is how many closed ports are named.
const shown = 3

const unreachable = "nobody has the address, or a router on the way says so: is the machine up? An overlay address has to be routed by a node's other one"

func (r *Report) add(o outcome) {
	switch {
	case o.skipped:
		return
	case o.unasked != "":
		if !slices.Contains(r.Unasked, o.unasked) {
			r.Unasked = append(r.Unasked, o.unasked)
		}
		return
	case o.answer != "":
		r.Answers = append(r.Answers, o.answer)
	case o.closed != "":
		r.closed = append(r.closed, o.closed)
	}
	r.Asked++
}

func tcp(ctx context.Context, to netip.AddrPort, wait time.Duration) outcome {
	d := net.Dialer{Timeout: wait}
	c, err := d.DialContext(ctx, "tcp", to.String())
	switch {
	case err == nil:
		_ = c.Close()
		return outcome{answer: fmt.Sprintf("port %d is open", to.Port())}
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return outcome{closed: fmt.Sprintf("port %d", to.Port())}
	}
	return silence(ctx, err)
}

// udp sends a byte a second. A closed port that no rule guards says so (ICMP, RFC 1122, section 3.2.2.1).
func udp(ctx context.Context, to netip.AddrPort, wait time.Duration) outcome {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", to.String())
	if err != nil {
		return silence(ctx, err)
	}
	defer func() { _ = c.Close() }()
	for end := time.Now().Add(wait); ; {
		if _, err = c.Write([]byte{0}); err == nil {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			_, err = c.Read(make([]byte, 1))
		}
		var late net.Error
		switch {
		case err == nil:
			return outcome{answer: fmt.Sprintf("UDP port %d answers", to.Port())}
		case errors.Is(err, syscall.ECONNREFUSED):
			return outcome{closed: fmt.Sprintf("UDP port %d", to.Port())}
		case errors.As(err, &late) && late.Timeout() && ctx.Err() == nil && time.Now().Before(end):
			continue
		}
		return silence(ctx, err)
	}
}

// silence tells an answer that did not come in time from a question that was never asked.
func silence(ctx context.Context, err error) outcome {
	var late net.Error
	switch {
	case ctx.Err() != nil:
		return outcome{unasked: "interrupted"}
	case errors.As(err, &late) && late.Timeout():
		return outcome{}
	case errors.Is(err, syscall.EHOSTUNREACH):
		return outcome{unasked: unreachable}
	case errors.Is(err, syscall.ENETUNREACH):
		return outcome{unasked: "this machine has no route to it"}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return outcome{unasked: "this machine's own routes or rules refuse it"}
	}
	// Without the addresses, which differ from port to port.
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return outcome{unasked: strings.TrimSpace(err.Error())}
}
