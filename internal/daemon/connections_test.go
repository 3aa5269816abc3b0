package daemon_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/gatetest"
	"github.com/vallum/vallum/internal/vllmtest"
)

// alone is a client with connections of its own.
func alone(t *testing.T, g *gatetest.Gate) *http.Client {
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: g.Certificate().Pool}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// A connection of HTTP/2 has one place, whatever runs on it: between requests it makes room, the longest idle first, and
// while a stream runs it does not.
func TestHTTP2ConnectionsCountToo(t *testing.T) {
	t.Parallel()
	const most = 8
	g := gatetest.Start(t, gatetest.Options{TLS: true, Config: "connections: {max: 8, per_address: 8}\n"})
	models := gatetest.Request{Path: "/v1/models", Key: g.Secret("app")}
	hang := func(c *http.Client) *running {
		g.Fake.Next(vllmtest.Behaviour{Kind: vllmtest.Hang, After: 1})
		g.Client = c
		return open(t, g, "chat", g.Secret("app"))
	}
	held := g.Client
	defer func() { g.Client = held }()
	streams := []*running{hang(alone(t, g))}
	for i := range 2 * most {
		resp, err := gatetest.Open(t, alone(t, g), g.URL, models)
		if err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if _ = resp.Body.Close(); resp.ProtoMajor != 2 || resp.StatusCode != 200 {
			t.Fatalf("client %d: %s %s", i, resp.Proto, resp.Status)
		}
	}
	if n := g.Gauge("vallum_client_connections"); n != "8" {
		t.Errorf("%s connections are open", n)
	}
	if n := g.Gauge("vallum_client_connections_idle_closed_total"); n != "9" { // 1 + 16 came
		t.Errorf("%s were closed while idle", n)
	}
	for len(streams) < most {
		streams = append(streams, hang(alone(t, g)))
	}
	g.Eventually("a connection too many", func() bool { // one that has sent nothing yet counts as idle: the first may have got its place
		_, err := gatetest.Open(t, alone(t, g), g.URL, models)
		return err != nil
	})
	if _, err := g.Store().RevokeKey(t.Context(), "app", time.Now()); err != nil {
		t.Fatal(err)
	}
	for i, s := range streams {
		if rest := s.rest(); !strings.Contains(rest, `"revoked"`) {
			t.Errorf("stream %d was cut for another connection: %q", i, rest)
		}
	}
}

// begun opens so many connections that begin a request, and gives how many stay open.
func begun(t *testing.T, g *gatetest.Gate, n int) int {
	t.Helper()
	var conns []net.Conn
	for range n {
		c, err := net.Dial("tcp", strings.TrimPrefix(g.URL, "http://"))
		if err != nil {
			continue // closed as it came
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\n")
		conns = append(conns, c)
	}
	left := func() (open int) {
		for _, c := range conns {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				open++
			}
		}
		return open
	}
	before := -1
	g.Eventually("the connections", func() bool { // those that are closed are so at once; the kernel may have to tell yet
		same := left() == before
		before = left()
		return same && g.Gauge("vallum_client_connections") == strconv.Itoa(before)
	})
	return before
}

// The proxies that end TLS stand for many callers, and have the bound of all; whoever else connects has that of one address.
func TestProxiesHaveNoBoundOfTheirOwn(t *testing.T) {
	t.Parallel()
	for proxies, want := range map[string]int{"127.0.0.0/8": 12, "10.0.0.0/8": 4} {
		g := gatetest.Start(t, gatetest.Options{Listener: "terminated_by: [" + proxies + "]", Config: "connections: {max: 12, per_address: 4}\n"})
		if got := begun(t, g, 20); got != want {
			t.Errorf("behind %s: %d connections are open, want %d", proxies, got, want)
		}
	}
}

// A reload changes the bounds, without a restart: who is flooded can act.
func TestTheBoundOnConnectionsIsReloaded(t *testing.T) {
	t.Parallel()
	g := gatetest.Start(t, gatetest.Options{Config: "connections: {max: 20, per_address: 10}\n"})
	if got := begun(t, g, 20); got != 10 {
		t.Errorf("%d connections are open, want 10", got)
	}
	g.Reload(strings.Replace(g.Yaml(), "per_address: 10", "per_address: 5", 1))
	g.Eventually("the connections' end", func() bool { return g.Gauge("vallum_client_connections") == "0" })
	if got := begun(t, g, 20); got != 5 {
		t.Errorf("%d connections are open, want 5", got)
	}
}
