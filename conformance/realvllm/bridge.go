package realvllm

import (
	"context"

	"github.com/vallum/vallum/conformance/relay"
)

// Bridge is a URL on loopback TCP that leads to the server's socket, for
// clients that cannot speak to a UNIX socket. It ends with ctx. The URL of a
// server without a socket is returned as it is.
func (s *Server) Bridge(ctx context.Context) (url string, err error) {
	if s.Path == "" {
		return s.URL, nil
	}
	r, err := relay.Start(ctx, "unix", s.Path, nil)
	if err != nil {
		return "", err
	}
	return r.URL(), nil
}
