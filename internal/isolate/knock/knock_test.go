package knock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func nameless(uint16) string { return "" }

// Whatever keeps a question from being asked is told apart from an answer that did not come.
func TestOnlyATimeThatRanOutIsSilence(t *testing.T) {
	for name, row := range map[string]struct {
		err  error
		want string
	}{
		"no answer":            {&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, ""},
		"nobody is there":      {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, "nobody has the address"},
		"no route":             {os.NewSyscallError("connect", syscall.ENETUNREACH), "no route to it"},
		"own prohibit route":   {os.NewSyscallError("connect", syscall.EACCES), "own routes or rules"},
		"own output rule":      {os.NewSyscallError("sendto", syscall.EPERM), "own routes or rules"},
		"too many files":       {&net.OpError{Op: "dial", Addr: &net.TCPAddr{Port: 7}, Err: os.NewSyscallError("socket", syscall.EMFILE)}, "too many open files"},
		"something else":       {errors.New("of tomorrow"), "of tomorrow"},
		"no family of its own": {&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EAFNOSUPPORT)}, "not supported"},
	} {
		o := silence(t.Context(), row.err)
		if o.answer != "" || (row.want == "") != (o.unasked == "") || !strings.Contains(o.unasked, row.want) {
			t.Errorf("%s: %+v", name, o)
		}
	}
	ended, stop := context.WithCancel(t.Context())
	stop()
	if o := silence(ended, os.ErrDeadlineExceeded); o.unasked != "interrupted" {
		t.Errorf("interrupted: %+v", o)
	}
}

func TestAReportIsSilentOnlyWhenAllWasAsked(t *testing.T) {
	if (Report{}).Silent() {
		t.Error("nothing was asked, and it is silent")
	}
	var r Report
	for _, o := range []outcome{{}, {skipped: true}, {unasked: "no way"}, {unasked: "no way"}} {
		r.add(o)
	}
	if r.Silent() || r.Asked != 1 || !slices.Equal(r.Unasked, []string{"no way"}) {
		t.Errorf("%+v", r)
	}
	var loud Report
	loud.add(outcome{answer: "port 7 is open"})
	if loud.Silent() {
		t.Errorf("%+v", loud)
	}
	ended, stop := context.WithCancel(t.Context())
	stop()
	if r := Ask(ended, netip.MustParseAddr("127.0.0.1"), Wait, []uint16{9}, nameless); r.Silent() {
		t.Errorf("interrupted before it began: %+v", r)
	}
}

// Silence counts where this machine could have heard an answer; an answer that it did hear counts always.
func TestSilenceOnAMachineThatStoodStillIsNone(t *testing.T) {
	for name, row := range map[string]struct {
		r            Report
		late         time.Duration
		silent, told bool
	}{
		"a little late":          {Report{Asked: 1}, time.Second, true, false},
		"too late":               {Report{Asked: 1}, time.Second + 1, false, true},
		"too late for an answer": {Report{Asked: 1, Answers: []string{"port 7 is open"}}, time.Minute, false, false},
	} {
		if r := row.r.unlessLate(row.late, 4*time.Second); r.Silent() != row.silent || (len(r.Unasked) > 0) != row.told {
			t.Errorf("%s: %+v", name, r)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		if late := pulse(func() { <-time.After(time.Minute) }); late != 0 {
			t.Errorf("a process that is always woken in time was %s late", late)
		}
	})
}

// A closed port says so, and an open one is named.
func TestWhatAnswersIsTold(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	open := netip.MustParseAddrPort(l.Addr().String()).Port()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := netip.MustParseAddrPort(gone.Addr().String()).Port()
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := Ask(t.Context(), netip.MustParseAddr("127.0.0.1"), Wait, []uint16{open, closed}, func(p uint16) string {
		return map[uint16]string{open: "HTTP API"}[p]
	})
	all := strings.Join(r.Answers, "\n")
	for _, want := range []string{"is open (HTTP API)", "closed, and says so: ", fmt.Sprintf("port %d", closed), "UDP port 33434", "no rule keeps strangers from them"} {
		if !strings.Contains(all, want) {
			t.Errorf("lacks %q:\n%s", want, all)
		}
	}
	if r.Silent() {
		t.Error("silent")
	}
}

func TestASampleIsOfThePortsThatTheKernelChooses(t *testing.T) {
	list := Sample(64)
	slices.Sort(list)
	if len(slices.Compact(list)) != 64 || list[0] < 32768 || list[63] > 60999 {
		t.Errorf("%d", list)
	}
	if slices.Equal(list, slices.Sorted(slices.Values(Sample(64)))) {
		t.Error("twice the same: the others would never be tried")
	}
}

// A machine without rules says of every port that it is closed: that is one line.
func TestClosedPortsAreOneLine(t *testing.T) {
	got := refusals([]string{"port 1", "port 2", "port 8000 (HTTP API)", "UDP port 33434", "port 3"})
	if want := "closed, and says so: port 8000 (HTTP API), UDP port 33434, port 1 and 2 more; no rule keeps strangers from them"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
