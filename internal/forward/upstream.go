package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/vallum/vallum/internal/ascii"
	"github.com/vallum/vallum/internal/sock"
)

// Target says where one vLLM server is. Key is a secret: it is sent to this server only, and stands in no error.
type Target struct {
	Name     string      // the operator's
	URL      *url.URL    // http://HOST[:PORT], https://HOST[:PORT] or unix:/PATH
	Key      string      `json:"-"` // vLLM's own key; "" when it has none
	TLS      *tls.Config `json:"-"` // for https: CA, client certificate; TLS 1.2 at least is set here. May be nil
	Timeouts Timeouts
}

// String is the target's name: what is printed of it holds no key.
func (t Target) String() string { return t.Name }

// GoString is the same for %#v.
func (t Target) GoString() string { return t.Name }

// Timeouts of one upstream. Zero means the default. None limits a stream that moves, however long it is.
type Timeouts struct {
	Connect       time.Duration // 5 s: to connect, with the TLS handshake
	FirstByte     time.Duration // 10 min: to send the request and wait for the first byte or event; long prompts queue, and an answer that is no stream comes only when all of it is there
	BetweenEvents time.Duration // 2 min: between two events of a stream, or two reads of an answer; a hung engine leaves both silent while /health says 200
	Write         time.Duration // 30 s: for the caller to take what is written
	Idle          time.Duration // 3 s: a pooled connection; vLLM closes after 5 s without a word (VLLM_HTTP_TIMEOUT_KEEP_ALIVE)
}

// Upstream is one vLLM server and its pool of connections. It may be used by any number of goroutines.
type Upstream struct {
	name     string
	network  string
	address  string
	fixed    []byte // the header lines that are the same in every request
	keyLine  []byte // Authorization, when there is a key
	tls      *tls.Config
	timeouts Timeouts
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	pool     pool
}

// New makes an upstream of a target; it connects to nothing. An error says what is wrong with the target.
func New(t Target) (*Upstream, error) {
	if t.URL == nil {
		return nil, errors.New("an upstream needs a URL: http://HOST:PORT, https://HOST:PORT or unix:/PATH")
	}
	u := &Upstream{name: t.Name, timeouts: t.Timeouts.withDefaults(), dial: (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext}
	if err := u.locate(t); err != nil {
		return nil, fmt.Errorf("upstream %q: %w", t.Name, err)
	}
	host := t.URL.Host
	if u.network == "unix" {
		host = "localhost"
	}
	u.fixed = []byte("Host: " + host + "\r\nUser-Agent: vallum\r\nAccept-Encoding: identity\r\n")
	if t.Key != "" {
		if !ascii.Visible(t.Key) {
			return nil, fmt.Errorf("upstream %q: its key holds a byte that no Authorization header may hold", t.Name)
		}
		u.keyLine = []byte("Authorization: Bearer " + t.Key + "\r\n")
	}
	u.pool.idle = u.timeouts.Idle
	return u, nil
}

func (u *Upstream) locate(t Target) error {
	l := t.URL
	switch {
	case l.User != nil:
		return errors.New("its URL holds a user or password: the key belongs in a file")
	case l.RawQuery != "" || l.Fragment != "":
		return errors.New("its URL has a query or fragment")
	case l.Scheme == "unix":
		u.network, u.address = "unix", l.Path
		if l.Opaque != "" || l.Host != "" || len(l.Path) < 2 {
			return errors.New("unix: needs an absolute path, such as unix:/run/vllm.sock")
		}
		return nil
	case l.Path != "" && l.Path != "/":
		return fmt.Errorf("its URL has the path %q: run vLLM without --root-path and leave /v1 away", l.Path)
	case l.Hostname() == "":
		return errors.New("its URL has no host")
	case !isHost(l.Host):
		return fmt.Errorf("its host %q holds a byte that no Host header may hold", l.Host)
	}
	port := l.Port()
	switch l.Scheme {
	case "http":
		if port == "" {
			port = "80"
		}
	case "https":
		if port == "" {
			port = "443"
		}
		u.tls = secured(t.TLS, l.Hostname())
	default:
		return fmt.Errorf("its scheme is %q: it may be http, https or unix", l.Scheme)
	}
	u.network, u.address = "tcp", net.JoinHostPort(l.Hostname(), port)
	return nil
}

// secured is the TLS configuration with what must hold: 1.2 at least, the name checked, HTTP/1.1 only.
func secured(c *tls.Config, host string) *tls.Config {
	if c == nil {
		c = &tls.Config{}
	}
	c = c.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	c.NextProtos = []string{"http/1.1"}
	if c.ServerName == "" {
		c.ServerName = host
	}
	return c
}

func (t Timeouts) withDefaults() Timeouts {
	for _, d := range []struct {
		of *time.Duration
		is time.Duration
	}{
		{&t.Connect, 5 * time.Second},
		{&t.FirstByte, 10 * time.Minute},
		{&t.BetweenEvents, 2 * time.Minute},
		{&t.Write, 30 * time.Second},
		{&t.Idle, 3 * time.Second},
	} {
		if *d.of <= 0 {
			*d.of = d.is
		}
	}
	return t
}

// Name is the operator's name of the upstream.
func (u *Upstream) Name() string { return u.name }

// Close closes the pooled connections. Requests that run go on, and their connections are closed when they end.
func (u *Upstream) Close() { u.pool.close() }

// connection is a pooled connection that is still alive, or a fresh one.
func (u *Upstream) connection(ctx context.Context, fresh bool) (*conn, error) {
	if err := ctx.Err(); err != nil { // its key may have gone before anything left
		return nil, err
	}
	if !fresh {
		if c := u.pool.get(); c != nil {
			return c, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, u.timeouts.Connect)
	defer cancel()
	raw, err := u.dial(ctx, u.network, u.address)
	if err != nil {
		return nil, fmt.Errorf("connecting to upstream %q: %w", u.name, err)
	}
	if u.tls == nil {
		return newConn(sock.Of(raw), raw), nil
	}
	secure := tls.Client(sock.Of(raw), u.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS with upstream %q: %w", u.name, err)
	}
	return newConn(secure, raw), nil
}

// probes are the paths that Get may ask for: what vLLM tells of itself, and nothing that it does.
var probes = []string{"/health", "/v1/models", "/version"}

// Get asks the upstream about itself: /health, /v1/models or /version, with or without its key. It needs no grant,
// because nothing of a caller is in it; any other path is an error. At most 4 MiB are read.
func (u *Upstream) Get(ctx context.Context, path string, withKey bool) (status int, body []byte, err error) {
	if !slices.Contains(probes, path) {
		return 0, nil, fmt.Errorf("%q is no probe: %q are", path, probes)
	}
	c, err := u.connection(ctx, true)
	if err != nil {
		return 0, nil, err
	}
	defer c.abort()
	defer context.AfterFunc(ctx, c.abort)()
	c.deadline(time.Now().Add(u.timeouts.Connect))
	request := append([]byte("GET "+path+" HTTP/1.1\r\nAccept: application/json\r\nConnection: close\r\n"), u.fixed...)
	if withKey {
		request = append(request, u.keyLine...)
	}
	if _, err := c.rw.Write(append(request, "\r\n"...)); err != nil {
		return 0, nil, fmt.Errorf("asking %q for %s: %w", u.name, path, err)
	}
	h, err := c.readHead("GET")
	if err != nil {
		return 0, nil, fmt.Errorf("asking %q for %s: %w", u.name, path, err)
	}
	body, err = c.body(h).all(make([]byte, 0, 4<<10), 4<<20, func() {}, unbounded)
	if err != nil {
		return 0, nil, fmt.Errorf("asking %q for %s: %w", u.name, path, err)
	}
	return h.status, body, nil
}
