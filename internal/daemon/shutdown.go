package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/admin"
	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/conns"
	"github.com/vallum/vallum/internal/verdict"
)

// listen opens every address of the configuration before anything is served, so that a taken port stops the start.
func (d *Daemon) listen(work context.Context, conf *config.Config) (clients, others []*server, err error) {
	base, cut := context.WithCancelCause(work)
	d.cut = cut
	var opened []*server
	add := func(address string, secure bool, http service, places *conns.Bound, proxies []netip.Prefix) (*server, error) {
		l, err := listen(address)
		if err != nil {
			return nil, err
		}
		shared := func(a netip.Addr) bool {
			return slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(a) })
		}
		s := &server{listener: places.Listener(l, shared), http: http, url: urlOf(l, secure)}
		opened = append(opened, s)
		return s, nil
	}
	for _, l := range conf.Listen {
		s, err := add(l.Address, l.TLS != nil, d.front(base, l, conf.Timeouts), d.places, l.ProxyNetworks())
		if err != nil {
			return nil, nil, errors.Join(err, closeAll(opened))
		}
		clients = append(clients, s)
	}
	for _, o := range []struct {
		what, address string
		handler       http.Handler
		places        int // of its own: whoever takes all the others does not keep the operator out
	}{{"probes", conf.Probes, admin.Probes(d, d.meter.Handler()), conns.ForProbes}, {"admin", conf.Admin, admin.Handler(d), conns.ForAdmin}} {
		if o.address == "" || o.address == "off" {
			continue
		}
		h := newServer(o.handler, conf.Timeouts, base, d.log)
		h.ReadTimeout, h.WriteTimeout = h.ReadHeaderTimeout, h.ReadHeaderTimeout+time.Minute // nothing here has a body or streams; a reload takes seconds
		places := &conns.Bound{}
		places.Limit(conns.Limits{All: o.places, Address: o.places / 2})
		s, err := add(o.address, false, h, places, nil)
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("%w%s", err, otherPort(o.address, conf)), closeAll(opened))
		}
		s.what = o.what
		others = append(others, s)
	}
	return clients, others, nil
}

func otherPort(address string, conf *config.Config) string {
	if address == conf.Probes && !strings.HasPrefix(address, "unix:") {
		return "; choose another with --probes ADDRESS, or --probes off"
	}
	return ""
}

func closeAll(servers []*server) error {
	var errs []error
	for _, s := range servers {
		errs = append(errs, s.listener.Close())
	}
	return errors.Join(errs...)
}

// shutdown stops accepting, lets running requests end until the deadline, then ends them as their dialect ends one,
// with a moment for that to reach the callers.
func (d *Daemon) shutdown(clients, others []*server, drain time.Duration) error {
	d.draining.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	done := make(chan error, len(clients))
	for _, s := range clients {
		go func() { done <- s.http.Shutdown(ctx) }()
	}
	late := false
	for range clients {
		if err := <-done; err != nil {
			late = true
		}
	}
	if late {
		d.log.Warn("requests still ran at the end of the drain; they were ended", "drain", drain)
		d.cut(verdict.ErrDrained)
		last, stop := context.WithTimeout(context.Background(), 2*time.Second)
		defer stop()
		for _, s := range clients {
			if s.http.Shutdown(last) != nil {
				_ = s.http.Close()
			}
		}
	}
	var errs []error
	for _, s := range others {
		errs = append(errs, s.http.Close())
	}
	return errors.Join(errs...)
}
