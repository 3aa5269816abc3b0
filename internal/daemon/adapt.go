package daemon

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/vallum/vallum/internal/authn"
	"github.com/vallum/vallum/internal/forward"
	"github.com/vallum/vallum/internal/gateway"
	"github.com/vallum/vallum/internal/limit"
	"github.com/vallum/vallum/internal/meter"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/upstream"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// This file fits the parts to the interfaces that gateway declares. Nothing here decides anything but what it says.

// limiter gives gateway the limiter that outlives reloads.
type limiter struct{ *limit.Limiter }

func (l limiter) Take(name string, p policy.Limits, now time.Time) (gateway.Slot, verdict.Verdict) {
	slot, v := l.Limiter.Take(name, limit.Limits(p), now)
	if v.Refused() {
		return nil, v // not slot: a nil *Slot in an interface is not nil
	}
	return slot, v
}

// registry tells a running request of a revoked key in the words that forward knows.
type registry struct{ keys *authn.Authenticator }

func (r registry) Register(keyID string, roles []string, cancel func(error)) func() {
	return r.keys.Register(keyID, roles, func(why error) { cancel(errors.Join(verdict.ErrRevoked, why)) })
}

// salter makes cache salts: HMAC-SHA-256 of the tenant under a secret of the state directory. 43 characters of
// base64url, well within what vLLM and LMCache take (at most 128, none of @ / \ NUL).
type salter struct {
	secret []byte
	made   sync.Map // tenant → salt; there are as many as tenants of keys
}

func (s *salter) Salt(tenant string) string {
	if salt, ok := s.made.Load(tenant); ok {
		return salt.(string)
	}
	mac := hmac.New(sha256.New, s.secret)
	mac.Write([]byte("cache_salt\x00" + tenant))
	salt := base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	s.made.Store(tenant, salt)
	return salt
}

// meters fits the meter to gateway's sample.
type meters struct{ *meter.Meter }

func (m meters) Began(op string)          { m.Meter.Began(op) }
func (m meters) Observe(s gateway.Sample) { m.Meter.Observe(meter.Sample(s)) }

// vllmServer is one configured upstream: what is known of it, and the way to it. It outlives reloads that do not change it.
type vllmServer struct {
	known   *upstream.Server
	way     *forward.Upstream
	key     string
	trust   digest // of the files by which it is trusted and Vallum shows itself
	shared  bool   // insecure_shared_prefix_cache
	stop    context.CancelFunc
	stopped chan struct{}

	mu    sync.Mutex
	owner string // the one tenant that may use operations whose prompts cannot be salted; "" until one does
}

// close stops watching the server and ends its idle connections. Running requests keep theirs.
func (s *vllmServer) close() {
	s.stop()
	<-s.stopped
	s.way.Close()
}

// isolates reports whether the tenant's prompts stay apart from other tenants' on this server. Where the release has no
// cache_salt for the operation, the first tenant has the server for itself.
func (s *vllmServer) isolates(op *vllm.Operation, tenant string, release vllm.Release) bool {
	if op.Salt == "" || s.shared || op.Salted(release) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner == "" {
		s.owner = tenant
	}
	return s.owner == tenant
}

// picker finds the server for a grant.
type picker struct {
	set     *upstream.Set
	servers map[string]*vllmServer
}

// Pick asks each server that is picked whether it may have the request, the second like the first, and goes past those
// that may not. When none is left, the first of their refusals is the answer.
func (p *picker) Pick(g policy.Grant, tried []string) (gateway.Upstream, verdict.Verdict) {
	may, passed, first := releases(g), false, verdict.Verdict{}
	for {
		known, err := p.set.Pick(g.Model(), g.Upstream(), tried, may)
		switch {
		case err != nil && passed:
			return nil, first
		case errors.Is(err, upstream.ErrDown), errors.Is(err, upstream.ErrNone):
			return nil, verdict.Refuse(verdict.UpstreamUnavailable, fmt.Errorf("%w: %s", err, p.problems()))
		case err != nil:
			return nil, verdict.Refuse(verdict.UpstreamUnavailable, err)
		}
		server := p.servers[known.Name()]
		v := server.admits(g)
		if !v.Refused() {
			return &sender{server}, v
		}
		if !passed {
			first, passed = v, true
		}
		tried = append(slices.Clip(tried), known.Name())
	}
}

// admits says whether the server's release may have the request, and keeps the tenant's prompts apart from others'.
func (s *vllmServer) admits(g policy.Grant) verdict.Verdict {
	st := s.known.State()
	if v := g.For(st.Release); v.Refused() {
		return v
	}
	if !s.isolates(g.Operation(), g.Who().Tenant(), st.Release) {
		return verdict.Refuse(verdict.CacheNotIsolated, fmt.Errorf("upstream %q runs vLLM %s, which has no cache_salt for %s", st.Name, st.Version, g.Operation().ID))
	}
	return verdict.Allow()
}

// releases says which releases may have the request; nil: all may.
func releases(g policy.Grant) func(vllm.Release) bool {
	if !g.Picky() {
		return nil
	}
	kept := g // only here a grant outlives the stack
	return func(r vllm.Release) bool {
		v := kept.For(r)
		return !v.Refused()
	}
}

func (p *picker) problems() string {
	for _, st := range p.set.States() {
		if !st.Alive {
			return st.Name + ": " + st.Problem
		}
	}
	return "none is configured for it"
}

// sender sends to one server and tells its state what came of it.
type sender struct{ *vllmServer }

func (s *sender) Name() string { return s.known.Name() }

func (s *sender) Send(ctx context.Context, w http.ResponseWriter, c gateway.Call) verdict.Outcome {
	out := s.way.Send(ctx, w, forward.Call{
		Grant: c.Grant, RequestID: c.ID, ContentType: c.Body.ContentType, Body: c.Body.Bytes, Reader: c.Body.Reader, Length: c.Body.Length,
		Stream: c.Grant.Stream(), MaxReply: c.MaxReply, Rewriter: c.Reply, Sent: c.Sent, Room: c.Room,
	})
	s.known.Done(out)
	return out
}
