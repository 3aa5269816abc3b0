package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vallum/vallum/conformance/nodes"
)

// What one measurement of a path takes.
const (
	flowing = time.Second // for each number of connections
	trips   = 300         // of each size
	many    = 4           // connections side by side
	little  = 64
	big     = 16 << 10 // one token's hidden state of a model with hidden size 8192, in 16 bits
)

var networkFigures = []figure{
	{"throughput, 1 connection", "Gbit/s"},
	{"throughput, 4 connections", "Gbit/s"},
	{"CPU for a GB, both nodes", "s"},
	{"round trip, 64 B", "µs"},
	{"round trip, 16 KiB", "µs"},
}

// network compares a lab as it is with one whose overlay is up. They are alike but for that.
func (b *bench) network(ctx context.Context, mtu int) ([]row, error) {
	labs := map[string]*nodes.Lab{}
	for _, path := range []string{bare, overlay} {
		l, err := b.lab(ctx, mtu)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		labs[path] = l
	}
	if err := up(ctx, labs[overlay]); err != nil {
		return nil, err
	}
	rows, err := interleave(ctx, network, b.rounds, networkFigures, b.progress, func(ctx context.Context, path string) ([]float64, error) {
		return measurePath(ctx, labs[path], path)
	})
	for i := range rows {
		rows[i].Figure += fmt.Sprintf(", MTU %d", mtu)
	}
	return rows, err
}

// measurePath measures from a to b.
func measurePath(ctx context.Context, l *nodes.Lab, path string) ([]float64, error) {
	a, b := l.Node("a"), l.Node("b")
	to := b.Under
	if path == overlay {
		to = b.Over
	}
	one, _, err := throughput(ctx, a, b, to, 1)
	if err != nil {
		return nil, err
	}
	all, cpu, err := throughput(ctx, a, b, to, many)
	if err != nil {
		return nil, err
	}
	values := []float64{one, all, cpu}
	for _, size := range []int{little, big} {
		took, err := roundTrip(a, b, to, size)
		if err != nil {
			return nil, err
		}
		values = append(values, float64(took)/float64(time.Microsecond))
	}
	return values, nil
}

// pair is connections from a to b: the near and the far ends.
func pair(a, b *nodes.Node, to netip.Addr, count int) (near, far []net.Conn, err error) {
	l, err := b.Listen(netip.AddrPortFrom(to, 0))
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	at := netip.AddrPortFrom(to, uint16(l.Addr().(*net.TCPAddr).Port))
	for range count {
		c, err := a.Dial("tcp", at, 5*time.Second)
		if err != nil {
			closeAll(near, far)
			return nil, nil, err
		}
		near = append(near, c)
		if c, err = l.Accept(); err != nil {
			closeAll(near, far)
			return nil, nil, err
		}
		far = append(far, c)
	}
	deadline := time.Now().Add(30 * time.Second)
	for _, c := range append(near[:count:count], far...) {
		if err := c.SetDeadline(deadline); err != nil {
			closeAll(near, far)
			return nil, nil, err
		}
	}
	return near, far, nil
}

func closeAll(lists ...[]net.Conn) {
	for _, list := range lists {
		for _, c := range list {
			_ = c.Close()
		}
	}
}

// throughput sends for a while and returns Gbit/s, and the CPU seconds of both ends and both tunnels for a GB.
func throughput(ctx context.Context, a, b *nodes.Node, to netip.Addr, count int) (rate, cpu float64, err error) {
	near, far, err := pair(a, b, to, count)
	if err != nil {
		return 0, 0, err
	}
	defer closeAll(near, far)
	tunnels, err := tunnelPIDs(a, b)
	if err != nil {
		return 0, 0, err
	}
	before, err := cpuOf(tunnels)
	if err != nil {
		return 0, 0, err
	}
	before += ownTime()
	var wg sync.WaitGroup
	total := make([]int64, count)
	failed := make([]error, count)
	began := time.Now()
	end := began.Add(flowing)
	for i := range count {
		wg.Go(func() {
			zeros := make([]byte, 128<<10)
			for time.Now().Before(end) && ctx.Err() == nil {
				if _, err := near[i].Write(zeros); err != nil {
					failed[i] = err
					break
				}
			}
			_ = near[i].(*net.TCPConn).CloseWrite()
		})
		wg.Go(func() {
			// Not io.Copy: to io.Discard it reads 8 KiB at a time.
			b := make([]byte, 256<<10)
			for {
				n, err := far[i].Read(b)
				total[i] += int64(n)
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began).Seconds()
	after, err := cpuOf(tunnels)
	if err := errors.Join(append(failed, err)...); err != nil {
		return 0, 0, err
	}
	after += ownTime()
	bytes := int64(0)
	for _, n := range total {
		bytes += n
	}
	if bytes == 0 {
		return 0, 0, errors.New("nothing arrived")
	}
	return float64(bytes) * 8 / 1e9 / took, (after - before).Seconds() / (float64(bytes) / 1e9), nil
}

// roundTrip is the median of many.
func roundTrip(a, b *nodes.Node, to netip.Addr, size int) (time.Duration, error) {
	near, far, err := pair(a, b, to, 1)
	if err != nil {
		return 0, err
	}
	defer closeAll(near, far)
	go func() {
		buf := make([]byte, size)
		for {
			if _, err := io.ReadFull(far[0], buf); err != nil {
				return
			}
			if _, err := far[0].Write(buf); err != nil {
				return
			}
		}
	}()
	var took []float64
	buf := make([]byte, size)
	for range trips {
		began := time.Now()
		if _, err := near[0].Write(buf); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(near[0], buf); err != nil {
			return 0, err
		}
		took = append(took, float64(time.Since(began)))
	}
	return time.Duration(median(took)), nil
}

// ownTime is what this program has worked: both ends of the connections.
func ownTime() time.Duration {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
