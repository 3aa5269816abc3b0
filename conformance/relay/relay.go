// Package relay carries bytes between a loopback port and a server that listens
// elsewhere, and lets a listener hear what the server says. It refuses to pass a
// half-close on as one: vLLM takes that for a client that left, so both
// connections are closed when either side ends.
package relay

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// Relay is a loopback port that leads to a server.
type Relay struct {
	listener net.Listener
	network  string
	address  string
	hear     func(n int64) io.WriteCloser
	count    atomic.Int64
	wg       sync.WaitGroup
}

// Start opens a port that leads to the address of the network, "tcp" or "unix".
// Hear, if it is not nil, is asked for each connection, numbered from 1, what
// gets a copy of the server's bytes; a connection without one is not carried.
// It ends with ctx.
func Start(ctx context.Context, network, address string, hear func(n int64) io.WriteCloser) (*Relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{listener: l, network: network, address: address, hear: hear}
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.carry(client) })
		}
	}()
	return r, nil
}

// URL is http://127.0.0.1:PORT.
func (r *Relay) URL() string { return "http://" + r.listener.Addr().String() }

// Connections is how many connections have been made.
func (r *Relay) Connections() int64 { return r.count.Load() }

func (r *Relay) carry(client net.Conn) {
	defer client.Close()
	n := r.count.Add(1)
	server, err := net.Dial(r.network, r.address)
	if err != nil {
		return
	}
	defer server.Close()
	said := io.Writer(client)
	if r.hear != nil {
		copied := r.hear(n)
		if copied == nil {
			return
		}
		defer copied.Close()
		said = io.MultiWriter(copied, client) // heard even if the client has left
	}
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(server, client) // how a connection broke is for its two ends to see
		server.Close()
	})
	_, _ = io.Copy(said, server)
	client.Close()
	up.Wait()
}
