package daemon_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/store"
)

// fewFiles is how many files the process of these tests may open.
const fewFiles = 256

// crowd is connections that somebody opens to take all there are.
type crowd struct {
	t     *testing.T
	conns []net.Conn
}

// opens opens n connections from that address, and sends on each what is given.
func (c *crowd) opens(n int, from, to, sends string) {
	c.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 20 * time.Second}
	for range n {
		conn, err := dialer.DialContext(c.t.Context(), "tcp", to)
		if errors.Is(err, syscall.ECONNRESET) {
			continue // closed as it came, before we saw that it was open
		}
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { _ = conn.Close() })
		_, _ = io.WriteString(conn, sends) // it may be closed already
		c.conns = append(c.conns, conn)
	}
}

// left is how many of them are open: a byte never comes on any.
func (c *crowd) left() (open int) {
	for _, conn := range c.conns {
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := conn.Read(make([]byte, 1))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			open++
		}
	}
	return open
}

func (c *crowd) goes() {
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.conns = nil
}

// beset is a gateway that may open few files, in a process of its own.
type beset struct {
	*child
	address, probes, socket string
	admin                   *http.Client
	store                   *store.Store
	began                   time.Time
}

func newBeset(t *testing.T, more string) *beset {
	t.Helper()
	b := &beset{child: newChild(t), began: time.Now()}
	dir, err := os.MkdirTemp("", "vallum") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b.socket = filepath.Join(dir, "admin.sock")
	b.configure("probes: 127.0.0.1:0\nadmin: unix:" + b.socket + "\n" + more)
	b.files = fewFiles
	b.start()
	b.address = strings.TrimPrefix(b.url, "http://")
	b.waits("the probes' address", func() bool {
		m := regexp.MustCompile(`probes +(http://\S+)`).FindStringSubmatch(b.log.String())
		if m != nil {
			b.probes = m[1]
		}
		return m != nil
	})
	b.admin = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", b.socket)
	}}}
	t.Cleanup(b.admin.CloseIdleConnections)
	if b.store, err = store.Open(t.Context(), b.state); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.store.Close() })
	return b
}

// waits fails when something does not come to be.
func (b *beset) waits(what string, is func() bool) {
	b.t.Helper()
	for late := time.Now().Add(30 * time.Second); !is(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(late) {
			b.t.Fatalf("%s: not in 30 s\n%s", what, &b.log)
		}
	}
}

// open is how many files the process has open.
func (b *beset) open() int {
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.cmd.Process.Pid))
	if err != nil {
		b.t.Fatal(err)
	}
	return len(files)
}

// metric is the sum of all lines of one metric.
func (b *beset) metric(name string) (sum float64) {
	b.t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(b.probes + "/metrics")
	if err != nil {
		b.t.Errorf("the probes: %v", err)
		return -1
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok && (rest[0] == ' ' || rest[0] == '{') {
			var v float64
			_, _ = fmt.Sscan(rest[strings.LastIndexByte(rest, ' '):], &v)
			sum += v
		}
	}
	return sum
}

// operatorGetsIn checks that whoever runs the gateway still reaches it, by both of his ways.
func (b *beset) operatorGetsIn(when string) {
	b.t.Helper()
	if resp, err := b.admin.Get("http://admin/status"); err != nil {
		b.t.Errorf("%s: administration: %v", when, err)
	} else if _ = resp.Body.Close(); resp.StatusCode != 200 {
		b.t.Errorf("%s: administration: %d", when, resp.StatusCode)
	}
	if n := b.metric("vallum_client_connections"); n < 1 {
		b.t.Errorf("%s: the probes tell of %v connections", when, n)
	}
}

// tellsOnceAMinute checks that the log tells of the flood, in a line and not in a flood of them.
func (b *beset) tellsOnceAMinute() {
	b.t.Helper()
	text := b.log.String()
	if n := strings.Count(text, "connections were refused"); n < 1 || n > 1+int(time.Since(b.began)/time.Minute) || strings.Contains(text, "too many open files") {
		b.t.Errorf("%d lines tell of the flood: %s", n, text)
	}
}

// stranger is somebody at another address, who opens a connection for each request.
func (b *beset) stranger() (status int, err error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.77")}}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialer.DialContext}}
	req, err := http.NewRequestWithContext(b.t.Context(), "GET", b.url+"/v1/models", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+b.key)
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// One address opens more connections than the process may have files. It gets its share, and everybody else goes on.
func TestOneAddressCannotTakeEveryConnection(t *testing.T) {
	t.Parallel()
	b := newBeset(t, "")
	before := b.open()
	flood := &crowd{t: t}
	flood.opens(2*fewFiles, "127.0.0.9", b.address, "POST /v1/chat/completions HTTP/1.1\r\n")
	share := (fewFiles - 112) / 2 / 4
	b.waits("the flood's connections", func() bool { return flood.left() <= share })
	for i := range 20 {
		if status, reason := b.chat(i%2 == 0); status != 200 {
			t.Errorf("a client that was there: %d %s", status, reason)
		}
		if status, err := b.stranger(); status != 200 {
			t.Errorf("a client that comes: %d %v", status, err)
		}
	}
	if n := b.open(); n > before+share+16 {
		t.Errorf("%d files are open, %d before the flood", n, before)
	}
	b.operatorGetsIn("while one address floods")
	refused, idle := b.metric("vallum_client_connections_refused_total"), b.metric("vallum_client_connections_idle_closed_total")
	if refused < 1 || refused+idle < 1.5*fewFiles { // one of which nothing was read yet makes room for the next
		t.Errorf("%v connections are counted as refused, %v as closed while idle", refused, idle)
	}
	b.tellsOnceAMinute()
	flood.goes()
	b.client.CloseIdleConnections()
	b.waits("the count's return", func() bool { return b.metric("vallum_client_connections") == 0 })
}

// Many addresses open connections and send nothing: each client that comes gets the place of the one that was silent longest.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	t.Parallel()
	b := newBeset(t, "")
	flood := &crowd{t: t}
	for i := range 20 {
		flood.opens(fewFiles/10, fmt.Sprintf("127.0.1.%d", i+1), b.address, "")
	}
	for range 10 {
		if status, err := b.stranger(); status != 200 {
			t.Errorf("a client that comes: %d %v", status, err)
		}
	}
	b.operatorGetsIn("while many addresses flood")
	if n := b.metric("vallum_client_connections_idle_closed_total"); n < fewFiles {
		t.Errorf("%v idle connections are counted as closed", n)
	}
	if n := b.open(); n >= fewFiles-16 {
		t.Errorf("%d of %d files are open", n, fewFiles)
	}
}

// Every place is taken by connections that send something, from many addresses, again and again. Those who were there go on,
// with all that needs a file: vLLM, the audit log's segments, the key store, the operator. When it ends everybody gets in.
func TestWithEveryPlaceTakenTheGatewayGoesOn(t *testing.T) {
	t.Parallel()
	b := newBeset(t, "timeouts: {header: 5m}\naudit: {max_segment: 4KiB}\n")
	if status, reason := b.chat(false); status != 200 {
		t.Fatal(status, reason)
	}
	flood := &crowd{t: t}
	for i := range 20 {
		flood.opens(fewFiles/10, fmt.Sprintf("127.0.1.%d", i+1), b.address, "POST /v1/chat/completions HTTP/1.1\r\n")
	}
	b.waits("every place to be taken", func() bool { _, err := b.stranger(); return err != nil })
	b.operatorGetsIn("when every place is taken")
	segments := func() int {
		files, _ := filepath.Glob(filepath.Join(b.auditDir(), "*.jsonl"))
		return len(files)
	}
	b.waits("a place", func() bool { // our connection was closed while it was idle, as it has to be
		_ = flood.conns[0].Close()
		flood.conns = flood.conns[1:]
		status, _ := b.chat(false)
		return status == 200
	})
	had := segments()
	for i := range 30 {
		if status, reason := b.chat(i%2 == 0); status != 200 {
			t.Fatalf("request %d of a client that was there: %d %s\n%s", i, status, reason, &b.log)
		}
	}
	if segments() <= had {
		t.Error("the log began no new segment")
	}
	b.operatorGetsIn("while every place is taken")
	secret, _, err := b.store.CreateKey(t.Context(), store.NewKey{Name: "late", Roles: []string{"inference"}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	old := b.key
	b.key = secret
	b.waits("a key that was made meanwhile", func() bool { status, _ := b.chat(false); return status == 200 })
	if _, err := b.store.RevokeKey(t.Context(), "app", time.Now()); err != nil {
		t.Fatal(err)
	}
	b.key = old
	b.waits("a key that was revoked meanwhile", func() bool { status, _ := b.chat(false); return status == 401 })
	b.key = secret
	if n := b.metric("vallum_client_connections_refused_total"); n < 1 {
		t.Errorf("%v connections are counted as refused", n)
	}
	b.tellsOnceAMinute()
	flood.goes()
	b.waits("a client that comes", func() bool { status, _ := b.stranger(); return status == 200 })
	b.everyArrivalIsRecorded()
	for r, err := range audit.Read(b.auditDir(), time.Time{}, nil) {
		if err != nil || r.Event == audit.Ended && r.Ended != audit.EndedComplete && r.Ended != audit.EndedRevoked {
			t.Errorf("recorded %+v %v", r, err)
		}
	}
}
