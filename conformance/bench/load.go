package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// latencies of one batch, sorted.
type latencies []time.Duration

func (l latencies) quantile(q float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	return l[min(len(l)-1, int(q*float64(len(l))))]
}

// batch is a bounded number of equal requests over some connections.
type batch struct {
	request     []byte
	status      int // that every answer must have
	connections int
	count       int           // of all connections together
	pause       time.Duration // between two requests of one connection; 0: the next follows the answer
	firstEvent  bool          // time to the first event instead of the answer's end
}

// run sends the batch and returns how long each request took. It fails on the first answer that is not as it should
// be: a figure of errors would flatter.
func (b batch) run(ctx context.Context, address string) (latencies, error) {
	each := b.count / b.connections
	took := make([]latencies, b.connections)
	errs := make([]error, b.connections)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range b.connections {
		wg.Go(func() {
			took[i] = make(latencies, 0, each)
			first := began.Add(b.pause * time.Duration(i) / time.Duration(b.connections))
			errs[i] = b.one(ctx, address, first, each, &took[i])
		})
	}
	wg.Wait()
	all := slices.Concat(took...)
	slices.Sort(all)
	return all, errors.Join(errs...)
}

func (b batch) one(ctx context.Context, address string, due time.Time, each int, took *latencies) error {
	c, err := dial(address)
	if err != nil {
		return err
	}
	defer func() { c.close() }()
	for range each {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if b.pause > 0 {
			time.Sleep(time.Until(due))
			due = due.Add(b.pause)
		}
		began := time.Now()
		var a answered
		took1 := time.Duration(0)
		if b.firstEvent {
			a, took1, err = c.untilFirstEvent(b.request)
		} else {
			a, err = c.exchange(b.request)
			took1 = time.Since(began)
		}
		if err != nil {
			return fmt.Errorf("a request to %s: %w", address, err)
		}
		if a.status != b.status {
			return fmt.Errorf("%s answered %d, not %d", address, a.status, b.status)
		}
		*took = append(*took, took1)
		if a.closing {
			c.close()
			if c, err = dial(address); err != nil {
				return err
			}
		}
	}
	return nil
}

// untilFirstEvent reads a stream to its end and says when its first event was there.
func (c *conn) untilFirstEvent(request []byte) (a answered, took time.Duration, err error) {
	began := time.Now()
	if _, err = c.nc.Write(request); err != nil {
		return a, 0, err
	}
	if a, err = c.readHead(); err != nil || a.status != 200 || a.length >= 0 {
		return a, 0, err
	}
	err = c.events(func(int) bool {
		if took == 0 {
			took = time.Since(began)
		}
		return true
	})
	return a, took, err
}

// streams are open streams whose events are counted.
type streams struct {
	conns  []*conn
	wg     sync.WaitGroup
	events atomic.Int64
	failed atomic.Pointer[error]
	closed atomic.Bool
	before int64 // what the process held before the streams, in bytes
}

// open opens n streams and returns when each has given its first event.
func open(ctx context.Context, t *target, n int, request []byte) (*streams, error) {
	s := &streams{}
	first := make(chan struct{}, n)
	for range n {
		c, err := dial(t.address)
		if err != nil {
			s.close()
			return nil, err
		}
		s.conns = append(s.conns, c)
		if _, err := c.nc.Write(request); err != nil {
			s.close()
			return nil, err
		}
		s.wg.Go(func() { s.read(c, first) })
	}
	timeout := time.After(30 * time.Second)
	for range n {
		select {
		case <-first:
		case <-timeout:
			s.close()
			return nil, fmt.Errorf("%s: not all of %d streams began", t.name, n)
		case <-ctx.Done():
			s.close()
			return nil, ctx.Err()
		}
	}
	if err := s.failed.Load(); err != nil {
		s.close()
		return nil, fmt.Errorf("%s: %w", t.name, *err)
	}
	return s, nil
}

func (s *streams) read(c *conn, first chan<- struct{}) {
	began := false
	a, err := c.readHead()
	if err == nil && (a.status != 200 || a.length >= 0) {
		err = fmt.Errorf("status %d, and no stream", a.status)
	}
	if err == nil {
		err = c.events(func(n int) bool {
			s.events.Add(int64(n))
			if !began {
				began = true
				first <- struct{}{}
			}
			return true
		})
		if err == nil {
			err = errors.New("a stream ended too early")
		}
	}
	if !s.closed.Load() {
		s.failed.CompareAndSwap(nil, &err)
	}
	if !began {
		first <- struct{}{}
	}
}

// close leaves all streams, as clients do, and waits for the readers.
func (s *streams) close() {
	s.closed.Store(true)
	for _, c := range s.conns {
		c.close()
	}
	s.wg.Wait()
}

// flood sends bodies that are too large, and reads what is said to that. Whoever floods does not stop when refused: it
// goes on writing until the connection is closed or the body is out.
type flood struct {
	connections int
	each        int   // requests of one connection, each on a connection of its own
	declared    int64 // Content-Length; 0: chunks without an announced end
	sent        int64 // bytes really sent of it
}

// run returns how often the refusal was read; a connection that is reset while we write gives none.
func (f flood) run(ctx context.Context, t *target) (refused int64, err error) {
	framing := fmt.Sprintf("Content-Length: %d\r\n", f.declared)
	if f.declared == 0 {
		framing = "Transfer-Encoding: chunked\r\n"
	}
	head := request(t, chatPath, t.key, framing, "")
	var count atomic.Int64
	errs := make([]error, f.connections)
	var wg sync.WaitGroup
	for i := range f.connections {
		wg.Go(func() {
			for range f.each {
				status, err := f.one(t.address, head)
				if ctx.Err() != nil {
					return
				}
				if err == nil && status != 413 {
					errs[i] = fmt.Errorf("%s answered %d to a body that is too large", t.name, status)
					return
				}
				if err == nil {
					count.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return count.Load(), errors.Join(errs...)
}

const (
	pieceBytes    = 32 << 10
	floodDeadline = 10 * time.Second
)

func (f flood) one(address string, head []byte) (int, error) {
	c, err := dial(address)
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := c.nc.SetDeadline(time.Now().Add(floodDeadline)); err != nil {
		return 0, err
	}
	if _, err := c.nc.Write(head); err != nil {
		return 0, err
	}
	go func() {
		// One string of JSON that does not end.
		piece := []byte(filler(pieceBytes))
		lead := []byte(`{"messages":[{"role":"user","content":"`)
		if f.declared == 0 {
			lead = fmt.Appendf(nil, "%x\r\n%s\r\n", len(lead), lead)
			piece = fmt.Appendf(nil, "%x\r\n%s\r\n", len(piece), piece)
		}
		if _, err := c.nc.Write(lead); err != nil {
			return
		}
		for sent := int64(0); sent < f.sent; sent += pieceBytes {
			if _, err := c.nc.Write(piece); err != nil {
				return
			}
		}
	}()
	a, err := c.receive()
	return a.status, err
}
