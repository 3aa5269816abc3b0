package relay

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

type closing struct {
	bytes.Buffer
	closed chan struct{}
}

func (c *closing) Close() error { close(c.closed); return nil }

func TestWhatTheServerSaysIsCarriedAndHeard(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		io.WriteString(w, "you said "+string(b))
	}))
	defer server.Close()
	heard := &closing{closed: make(chan struct{})}
	r, err := Start(t.Context(), "tcp", strings.TrimPrefix(server.URL, "http://"), func(int64) io.WriteCloser { return heard })
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post(r.URL(), "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(got) != "you said hello" {
		t.Errorf("got %q, %v", got, err)
	}
	<-heard.closed
	if !strings.HasPrefix(heard.String(), "HTTP/1.1 200") || !strings.HasSuffix(heard.String(), "you said hello") || r.Connections() != 1 {
		t.Errorf("heard %q on %d connections", heard, r.Connections())
	}
}

// A client that leaves is seen by the server: a proof of hang-ups stands on it.
func TestAClientThatLeavesIsSeenByTheServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	left := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(io.Discard, c)
		}
		left <- err
	}()
	r, err := Start(t.Context(), "tcp", l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp", strings.TrimPrefix(r.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	if err := <-left; err != nil {
		t.Error(err)
	}
}
