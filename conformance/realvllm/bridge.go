package realvllm

import (
	"context"
	"io"
	"net"
	"sync"
)

// Bridge carries bytes between a loopback TCP port and the server's socket, for
// clients that cannot speak to a UNIX socket. It reads nothing of what passes
// and ends with ctx. The URL of a server without a socket is returned as it is.
func (s *Server) Bridge(ctx context.Context) (url string, err error) {
	if s.Path == "" {
		return s.URL, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go s.carry(client)
		}
	}()
	return "http://" + l.Addr().String(), nil
}

// carry joins one connection with a new one to the socket. Both are closed
// when either side ends: vLLM takes a half-closed connection for a client that
// left, so a half-close is never passed on as one.
func (s *Server) carry(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", s.Path)
	if err != nil {
		return
	}
	defer server.Close()
	var once sync.Once
	ended := make(chan struct{})
	for _, pair := range [2][2]net.Conn{{server, client}, {client, server}} {
		go func() {
			io.Copy(pair[0], pair[1])
			once.Do(func() { close(ended) })
		}()
	}
	<-ended
}
