package measure

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// What one connection may take of the side that serves, whatever the other end asks for.
const (
	ServedTime = time.Minute
	idle       = 15 * time.Second // between two frames
)

// Serving is how a connection is served. The zero Serving serves nothing: no byte is allowed.
type Serving struct {
	Bytes          int64 // at most, of each direction of each path
	Expect, Answer Token // zero over the overlay
	// Bare meets the other end beside the overlay, at the port that it named; nil refuses that.
	Bare func(ctx context.Context, port uint16) (net.Conn, error)
}

// Served is what a connection has cost, its bare path included.
type Served struct{ In, Out int64 }

// Serve answers who measures over c, which it closes, until that side ends, ctx does or a bound is reached. An end
// that breaks the protocol, stays silent or sends more than it may is an error.
func Serve(ctx context.Context, c net.Conn, s Serving) (Served, error) {
	ctx, cancel := context.WithTimeout(ctx, ServedTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer func() { _ = c.Close() }()
	v := &server{p: newPipe(c, s.Bytes), s: s}
	err := v.run(ctx)
	cancel() // the bare path ends with the one over which it was asked for
	v.bare.Wait()
	v.total.In += v.p.got + v.beside.In
	v.total.Out += v.beside.Out
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return v.total, err
}

type server struct {
	p      *pipe
	s      Serving
	total  Served
	bare   sync.WaitGroup
	beside Served // what the bare path has cost, once bare is done
	asked  bool
}

func (v *server) run(ctx context.Context) error {
	if err := v.p.c.SetDeadline(time.Now().Add(idle)); err != nil {
		return err
	}
	if err := v.p.greeted(v.s.Expect); err != nil {
		return err
	}
	if err := v.p.greet(v.s.Answer); err != nil {
		return err
	}
	counted := int64(0)
	for {
		if err := v.p.c.SetDeadline(time.Now().Add(idle)); err != nil {
			return err
		}
		kind, payload, err := v.p.read()
		if err != nil {
			return err
		}
		switch kind {
		case kindEcho:
			err = v.answer(kindEcho, payload)
		case kindData:
			counted += int64(len(payload))
		case kindEnd:
			err = v.answer(kindEnd, binary.BigEndian.AppendUint64(nil, uint64(counted)))
			counted = 0
		case kindSource:
			err = v.source(payload)
		case kindBare:
			err = v.meet(ctx, payload)
		default:
			err = errProtocol
		}
		if err != nil {
			return err
		}
	}
}

func (v *server) answer(kind byte, payload []byte) error {
	if err := v.spend(int64(len(payload))); err != nil {
		return err
	}
	return v.p.write(kind, payload)
}

// spend refuses what would go past the bound of what leaves.
func (v *server) spend(n int64) error {
	if v.total.Out+n > v.s.Bytes {
		return fmt.Errorf("the other end asks for more than the %d bytes that it may", v.s.Bytes)
	}
	v.total.Out += n
	return nil
}

// source sends as much as is asked for, within the bounds that are this side's.
func (v *server) source(ask []byte) error {
	if len(ask) != 16 {
		return errProtocol
	}
	limit, span := binary.BigEndian.Uint64(ask), binary.BigEndian.Uint64(ask[8:])
	if limit > Bytes || span > uint64(Time) {
		return fmt.Errorf("the other end asks for %d bytes in %d ns, more than it may", limit, span)
	}
	if err := v.spend(int64(limit)); err != nil {
		return err
	}
	sent, err := v.p.flood(int64(limit), time.Now().Add(time.Duration(span)))
	v.total.Out -= int64(limit) - sent
	return err
}

// meet sets out to the other end beside the overlay, once a connection, and serves it there.
func (v *server) meet(ctx context.Context, ask []byte) error {
	if len(ask) != 2 {
		return errProtocol
	}
	port := binary.BigEndian.Uint16(ask)
	if v.s.Bare == nil || v.asked || port == 0 {
		return v.answer(kindNo, nil)
	}
	v.asked = true
	s := Serving{Bytes: v.s.Bytes}
	_, _ = rand.Read(s.Expect[:]) // never fails
	_, _ = rand.Read(s.Answer[:])
	if err := v.answer(kindBare, append(s.Expect[:], s.Answer[:]...)); err != nil {
		return err
	}
	v.bare.Go(func() {
		c, err := v.s.Bare(ctx, port)
		if err != nil {
			return // the other end sees it too, and says it
		}
		v.beside, _ = Serve(ctx, c, s)
	})
	return nil
}
