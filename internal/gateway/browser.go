package gateway

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// maxHeaderFields bounds the fields of a request. Real clients send 30 at most; vLLM itself takes 50,000.
const maxHeaderFields = 100

// enter is what is asked of a connection before anything of the request is believed: where it comes from, and that its
// header block is not made to cost. The block's bytes are bounded by the server.
func (g *Gateway) enter(proxies []netip.Prefix, r *http.Request) (netip.Addr, verdict.Verdict) {
	remote, v := remoteOf(proxies, r)
	if v.Refused() {
		return remote, v
	}
	fields := 0
	for _, values := range r.Header {
		fields += len(values)
	}
	if fields > maxHeaderFields {
		return remote, verdict.Refuse(verdict.BadHeaders, fmt.Errorf("%d header fields", fields)).Saying("At most %d fields are accepted.", maxHeaderFields)
	}
	return remote, verdict.Allow()
}

// remoteOf is the address that a request comes from. Where TLS is ended by named proxies only they may connect, and the
// last address that the nearest of them appended to X-Forwarded-For is believed: earlier ones are the caller's own words.
func remoteOf(proxies []netip.Prefix, r *http.Request) (netip.Addr, verdict.Verdict) {
	peer := netip.Addr{}
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		peer = ap.Addr().Unmap()
	}
	if len(proxies) == 0 {
		return peer, verdict.Allow()
	}
	if !among(proxies, peer) {
		return peer, verdict.Refuse(verdict.UntrustedProxy, fmt.Errorf("connection from %s, which is not in terminated_by", peer))
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		addr, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		if addr = addr.Unmap(); !among(proxies, addr) {
			return addr, verdict.Allow()
		}
	}
	return peer, verdict.Allow()
}

func among(proxies []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// corsHeaders are the request headers that browsers may send: `*` does not cover Authorization, and the SDKs' own
// x-stainless-* have to be named one by one (Fetch standard, "CORS-preflight fetch").
const corsHeaders = "authorization, content-type, x-api-key, api-key, anthropic-version, anthropic-beta, anthropic-dangerous-direct-browser-access, " +
	"x-request-id, x-vallum-upstream, x-stainless-lang, x-stainless-package-version, x-stainless-os, x-stainless-arch, x-stainless-runtime, " +
	"x-stainless-runtime-version, x-stainless-retry-count, x-stainless-timeout, x-stainless-helper-method"

// answerBrowser answers OPTIONS, which is never forwarded, and marks replies to listed origins. It reports whether the
// request is answered. Other methods need no origin check: a key in a header makes every browser ask here first.
func (g *Gateway) answerBrowser(w http.ResponseWriter, r *http.Request) bool {
	origin := r.Header.Get("Origin")
	listed := origin != "" && slices.Contains(g.Settings.Origins, origin)
	if len(g.Settings.Origins) > 0 {
		w.Header().Add("Vary", "Origin")
	}
	if listed {
		w.Header().Set("Access-Control-Allow-Origin", origin)
		w.Header().Set("Access-Control-Expose-Headers", "x-request-id, request-id, x-vallum-reason, x-vallum-dropped, retry-after")
	}
	if r.Method != http.MethodOptions {
		return false
	}
	if !listed {
		writeRefusal(w, vllm.OpenAI, verdict.Refuse(verdict.OriginNotListed, nil))
		return true
	}
	w.Header().Set("Access-Control-Allow-Methods", "GET, POST, DELETE")
	w.Header().Set("Access-Control-Allow-Headers", corsHeaders)
	w.Header().Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}
