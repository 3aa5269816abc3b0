package measure

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// little is a budget that a test has time for.
var little = Budget{150 * time.Millisecond, 32 << 20}

// loopback is both ends of a TCP connection.
func loopback(t *testing.T) (asking, serving net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if asking, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if serving, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { asking.Close(); serving.Close() })
	return asking, serving
}

type served struct {
	Served
	err error
}

func serve(c net.Conn, s Serving) <-chan served {
	done := make(chan served, 1)
	go func() {
		cost, err := Serve(context.Background(), c, s)
		done <- served{cost, err}
	}()
	return done
}

func TestBothSidesCountTheSame(t *testing.T) {
	asking, serving := loopback(t)
	done := serve(serving, Serving{Bytes: Bytes})
	a, err := Ask(asking, Token{}, Token{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := a.Round(little)
	if err != nil {
		t.Fatal(err)
	}
	asking.Close()
	cost := <-done
	if cost.err != nil {
		t.Errorf("the serving end: %v", cost.err)
	}
	if r.Sent.Bytes == 0 || r.Received.Bytes == 0 || r.Sent.Bytes+r.Received.Bytes > little.Bytes || len(r.Small) == 0 || len(r.Message) == 0 {
		t.Errorf("measured %+v of %+v", r, little)
	}
	if cost.In < r.Sent.Bytes || cost.In > little.Bytes || cost.Out < r.Received.Bytes || cost.Out > little.Bytes {
		t.Errorf("it cost %+v, measured were %d out and %d in", cost.Served, r.Sent.Bytes, r.Received.Bytes)
	}
	f := Sum(r, r)
	if !f.whole() || f.Bytes != 2*(r.Sent.Bytes+r.Received.Bytes) || f.MessageWorst < f.MessageMicros {
		t.Errorf("figures %+v", f)
	}
}

func TestWhatAWholeMeasurementMayTake(t *testing.T) {
	var all Budget
	for _, b := range Rounds() {
		all.Time, all.Bytes = all.Time+b.Time, all.Bytes+b.Bytes
	}
	if all.Time > 2*time.Second || all.Bytes > 256<<20 {
		t.Errorf("the rounds take %+v", all)
	}
	asking, serving := loopback(t)
	serve(serving, Serving{Bytes: Bytes})
	a, err := Ask(asking, Token{}, Token{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []Budget{{}, {time.Second, 1 << 20}, {0, 1 << 30}} {
		if _, err := a.Round(b); err == nil || !strings.Contains(err.Error(), "measures nothing") {
			t.Errorf("budget %+v: %v", b, err)
		}
	}
	if r, err := a.Round(Budget{time.Second, 16 << 20}); err != nil || r.Sent.Bytes+r.Received.Bytes+2*2*int64(len(r.Small)*small+len(r.Message)*message) > 16<<20 {
		t.Errorf("more than the budget, or %v: %+v", err, r)
	}
}

// frame is a frame by hand.
func frame(kind byte, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(payload))), payload...)
}

func greeting(t Token) []byte { return append([]byte(magic), t[:]...) }

// repeat writes b until nobody takes it any more.
func repeat(c net.Conn, b []byte) {
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func TestAPeerThatDoesNotMeasure(t *testing.T) {
	echo := func(c net.Conn, frames int) { // serves honestly so many frames
		b := make([]byte, 5+message)
		for range frames {
			if _, err := io.ReadFull(c, b[:5]); err != nil {
				return
			}
			n := 5 + binary.BigEndian.Uint32(b[1:5])
			if _, err := io.ReadFull(c, b[5:n]); err != nil {
				return
			}
			_, _ = c.Write(b[:n])
		}
	}
	for name, peer := range map[string]struct {
		does func(c net.Conn)
		want string
	}{
		"never answers":            {func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, "i/o timeout"},
		"hangs up":                 {func(c net.Conn) { _ = c.Close() }, "greeting"},
		"speaks HTTP":              {func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, "is not `vallum isolate verify --measure-serve`"},
		"answers one wrong letter": {func(c net.Conn) { _, _ = c.Write([]byte("X")); _ = c.Close() }, "is not `vallum isolate verify --measure-serve`"},
		"has another token":        {func(c net.Conn) { _, _ = c.Write(greeting(Token{1})) }, "is not `vallum isolate verify --measure-serve`"},
		"greets and is silent":     {func(c net.Conn) { _, _ = c.Write(greeting(Token{})); _, _ = io.Copy(io.Discard, c) }, "i/o timeout"},
		"greets and hangs up":      {func(c net.Conn) { _, _ = c.Write(greeting(Token{})); echo(c, 3); _ = c.Close() }, "measuring round trips"},
		"greets and talks nonsense": {func(c net.Conn) {
			_, _ = c.Write(append(greeting(Token{}), "HELO example.org\r\n"...))
		}, "breaks the protocol"},
		"announces 4 GB": {func(c net.Conn) {
			_, _ = c.Write(append(greeting(Token{}), 'e', 255, 255, 255, 255))
		}, "breaks the protocol"},
		"answers with another length": {func(c net.Conn) {
			_, _ = c.Write(append(greeting(Token{}), frame(kindEcho, []byte("x"))...))
			echo(c, 1)
		}, "breaks the protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asking, other := net.Pipe()
				go func() { // net.Pipe waits for who reads: the greeting has to be taken
					_, _ = io.ReadFull(other, make([]byte, len(greeting(Token{}))))
					peer.does(other)
					_, _ = io.Copy(io.Discard, other)
				}()
				began := time.Now()
				a, err := Ask(asking, Token{}, Token{})
				if err == nil {
					_, err = a.Round(little)
				}
				if err == nil || !strings.Contains(err.Error(), peer.want) {
					t.Errorf("got %v, want %q", err, peer.want)
				}
				if took := time.Since(began); took > little.Time+2*Grace {
					t.Errorf("it took %s", took)
				}
				asking.Close()
				other.Close()
			})
		})
	}
}

// A peer that goes on sending is cut off by count, one that sends next to nothing for ever by time.
func TestAPeerThatNeverStopsSending(t *testing.T) {
	for name, row := range map[string]struct {
		sends []byte
		want  string
	}{
		"data":                              {frame(kindData, make([]byte, maxFrame)), "more than it was asked for"},
		"empty frames with a pause between": {frame(kindData, nil), "i/o timeout"},
		"another count than it sent":        {frame(kindEnd, make([]byte, 7)), "breaks the protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asking, other := net.Pipe()
				gone := make(chan struct{})
				go func() {
					defer close(gone)
					_, _ = io.ReadFull(other, make([]byte, 5+16)) // what is asked for
					for {
						if _, err := other.Write(row.sends); err != nil {
							return
						}
						<-time.After(100 * time.Millisecond)
					}
				}()
				a := &Asker{newPipe(asking, Bytes)}
				if err := asking.SetDeadline(time.Now().Add(Grace)); err != nil {
					t.Fatal(err)
				}
				if _, err := a.receive(1<<20, time.Second); err == nil || !strings.Contains(err.Error(), row.want) {
					t.Errorf("got %v, want %q", err, row.want)
				}
				asking.Close()
				<-gone
			})
		})
	}
}

func TestAPeerThatCountsWrong(t *testing.T) {
	asking, other := loopback(t)
	go func() {
		for p := newPipe(other, Bytes); ; {
			kind, _, err := p.read()
			if err != nil {
				return
			}
			if kind == kindEnd {
				_ = p.write(kindEnd, make([]byte, 8))
			}
		}
	}()
	a := &Asker{newPipe(asking, Bytes)}
	if _, err := a.send(1<<20, time.Second); err == nil || !strings.Contains(err.Error(), "counted 0 bytes of 1048576") {
		t.Errorf("got %v", err)
	}
}

// The side that serves is bounded whatever the other one does.
func TestTheServingSideIsBounded(t *testing.T) {
	source := func(limit, span uint64) []byte {
		return frame(kindSource, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, limit), span))
	}
	for name, row := range map[string]struct {
		bytes int64
		sends []byte // after the greeting
		again []byte // and then this, for ever
		want  string
	}{
		"no greeting":                    {Bytes, nil, []byte("GET / HTTP/1.1\r\n"), ""},
		"data for ever":                  {4 << 20, nil, frame(kindData, make([]byte, maxFrame)), "sends more than"},
		"echoes for ever":                {4 << 20, nil, frame(kindEcho, make([]byte, maxFrame)), "more than"},
		"asks for more than a run has":   {Bytes, source(Bytes+1, 1), nil, "more than it may"},
		"asks for longer than a run":     {Bytes, source(1, uint64(Time)+1), nil, "more than it may"},
		"asks again and again":           {4 << 20, nil, source(3<<20, uint64(Time)), "asks for more than"},
		"a frame of 4 GB":                {Bytes, []byte{'d', 255, 255, 255, 255}, nil, "breaks the protocol"},
		"a kind that there is not":       {Bytes, frame('x', nil), nil, "breaks the protocol"},
		"source without its numbers":     {Bytes, frame(kindSource, []byte("1")), nil, "breaks the protocol"},
		"bare without its port":          {Bytes, frame(kindBare, nil), nil, "breaks the protocol"},
		"the zero Serving takes nothing": {0, frame(kindEcho, nil), nil, "sends more than the 0 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			asking, serving := loopback(t)
			done := serve(serving, Serving{Bytes: row.bytes})
			go func() { _, _ = io.Copy(io.Discard, asking) }()
			if name == "no greeting" {
				row.want = "is not `vallum isolate"
			} else if _, err := asking.Write(append(greeting(Token{}), row.sends...)); err != nil {
				t.Fatal(err)
			}
			if row.again != nil {
				go repeat(asking, row.again)
			}
			got := <-done
			if got.err == nil || !strings.Contains(got.err.Error(), row.want) {
				t.Errorf("got %v, want %q", got.err, row.want)
			}
			if most := row.bytes + maxFrame + 5; got.In > most || got.Out > row.bytes+maxFrame {
				t.Errorf("it cost %+v", got.Served)
			}
		})
	}
}

func TestASilentAskerIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asking, serving := net.Pipe()
		began := time.Now()
		done := serve(serving, Serving{Bytes: Bytes})
		got := <-done
		var timeout net.Error
		if !errors.As(got.err, &timeout) || !timeout.Timeout() || time.Since(began) > idle {
			t.Errorf("after %s: %v", time.Since(began), got.err)
		}
		asking.Close()
	})
}

// The bare path's round lies between two of the overlay's.
func TestAnAskerMayPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asking, serving := net.Pipe()
		done := serve(serving, Serving{Bytes: Bytes})
		a, err := Ask(asking, Token{}, Token{})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			<-time.After(Grace + time.Second)
			if _, err := a.Round(little); err != nil {
				t.Error(err)
			}
		}
		asking.Close()
		<-done
	})
}

// One that sends a little now and then is left too.
func TestNoConnectionIsServedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asking, serving := net.Pipe()
		began := time.Now()
		done := serve(serving, Serving{Bytes: Bytes})
		go func() { _, _ = io.Copy(io.Discard, asking) }()
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_, _ = asking.Write(greeting(Token{}))
			for {
				if _, err := asking.Write(frame(kindData, nil)); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		}()
		if got := <-done; got.err == nil || time.Since(began) != ServedTime {
			t.Errorf("after %s, and not after %s: %v", time.Since(began), ServedTime, got.err)
		}
		asking.Close()
		<-gone
	})
}

func TestTheBarePathIsServedToWhoHasTheTicket(t *testing.T) {
	beside := make(chan net.Conn, 2)
	bare := func(_ context.Context, port uint16) (net.Conn, error) {
		if port != 4711 {
			return nil, errors.New("another port")
		}
		asking, serving := loopback(t)
		beside <- asking
		return serving, nil
	}
	begin := func(s Serving) (*Asker, net.Conn, <-chan served) {
		asking, serving := loopback(t)
		done := serve(serving, s)
		a, err := Ask(asking, Token{}, Token{})
		if err != nil {
			t.Fatal(err)
		}
		return a, asking, done
	}
	a, _, _ := begin(Serving{Bytes: Bytes})
	if _, err := a.Bare(4711); !errors.Is(err, ErrNotOffered) {
		t.Errorf("a peer that was not told to: %v", err)
	}
	a, c, done := begin(Serving{Bytes: Bytes, Bare: bare})
	ticket, err := a.Bare(4711)
	if err != nil || ticket.Mine == ticket.Theirs || ticket.Mine == (Token{}) {
		t.Fatalf("%+v, %v", ticket, err)
	}
	other, err := Ask(<-beside, ticket.Mine, ticket.Theirs)
	if err != nil {
		t.Fatal(err)
	}
	r, err := other.Round(little)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Bare(4711); !errors.Is(err, ErrNotOffered) {
		t.Errorf("a bare path of a bare path: %v", err)
	}
	if _, err := a.Bare(4711); !errors.Is(err, ErrNotOffered) {
		t.Errorf("a second bare path: %v", err)
	}
	began := time.Now()
	c.Close()
	if got := <-done; got.err != nil || got.In < r.Sent.Bytes {
		t.Errorf("it cost %+v, %v; the bare path is left out", got.Served, got.err)
	}
	if took := time.Since(began); took > idle/2 {
		t.Errorf("the bare path outlived the one over which it was asked for by %s", took)
	}
	// Somebody who has the address and not the ticket is not served.
	a, c, done = begin(Serving{Bytes: Bytes, Bare: bare})
	if ticket, err = a.Bare(4711); err != nil {
		t.Fatal(err)
	}
	stranger := <-beside
	if _, err := stranger.Write(append(greeting(ticket.Theirs), frame(kindEcho, []byte("x"))...)); err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(stranger); len(b) > 0 {
		t.Errorf("a stranger gets %q", b)
	}
	c.Close()
	<-done
}
