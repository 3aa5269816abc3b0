package forward

import (
	"sync"
	"time"
)

// maxIdle bounds the pooled connections of one upstream.
const maxIdle = 512

// pool keeps connections for the next request, for less time than vLLM does.
type pool struct {
	idle time.Duration

	mu     sync.Mutex
	conns  []*conn // the longest idle first
	reaper *time.Timer
	closed bool
}

// get takes the connection that was used last, if it is alive; nil when there is none.
func (p *pool) get() *conn {
	for {
		c := p.take()
		if c == nil {
			return nil
		}
		if time.Since(c.idleSince) < p.idle && c.alive() {
			return c
		}
		c.abort()
	}
}

func (p *pool) take() *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.conns) == 0 {
		return nil
	}
	c := p.conns[len(p.conns)-1]
	p.conns = p.conns[:len(p.conns)-1]
	return c
}

// put keeps a connection whose answer was read to its end.
func (p *pool) put(c *conn) {
	c.used, c.idleSince = true, time.Now()
	c.br.Lend()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.conns) >= maxIdle {
		c.abort()
		return
	}
	p.conns = append(p.conns, c)
	if p.reaper == nil {
		p.reaper = time.AfterFunc(p.idle, p.reap)
	}
}

// reap closes what was idle for too long, so that no connection is left half open.
func (p *pool) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, old := time.Now(), 0
	for old < len(p.conns) && now.Sub(p.conns[old].idleSince) >= p.idle {
		p.conns[old].abort()
		old++
	}
	p.conns = append(p.conns[:0], p.conns[old:]...)
	if len(p.conns) == 0 || p.closed {
		p.reaper = nil
		return
	}
	p.reaper.Reset(p.idle - now.Sub(p.conns[0].idleSince) + time.Millisecond)
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.reaper != nil {
		p.reaper.Stop()
		p.reaper = nil
	}
	for _, c := range p.conns {
		c.abort()
	}
	p.conns = nil
}
