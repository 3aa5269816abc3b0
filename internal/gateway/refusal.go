package gateway

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/reply"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// refuse answers the caller in the dialect of the operation and keeps the verdict for the record.
func (x *exchange) refuse(w http.ResponseWriter, v verdict.Verdict) {
	x.verdict, x.refused = v, true
	switch cause := v.Cause(); {
	case x.outcome.UpStatus >= 400:
		x.gateway.Log.Warn("the upstream refused a request", "id", x.request.ID, "upstream", x.upstream.Name(), "status", x.outcome.UpStatus, "message", x.outcome.UpMessage)
	case cause != nil && !x.who.IsNobody():
		x.gateway.Log.Debug("refused", "id", x.request.ID, "reason", v.Reason().String(), "key_id", x.who.KeyID(), "cause", cause.Error())
	}
	dialect := vllm.OpenAI
	if x.op != nil {
		dialect = x.op.Dialect
	}
	x.outcome.BytesDown = writeRefusal(w, dialect, v)
}

// writeRefusal writes the refusal and returns the bytes of its body. Errors are application/json even where a stream
// was asked for: clients hang on an error that comes as text/event-stream.
func writeRefusal(w http.ResponseWriter, d vllm.Dialect, v verdict.Verdict) int64 {
	body := reply.Refusal(d, v)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Vallum-Reason", v.Reason().String())
	h.Del("X-Vallum-Dropped")
	status := v.Reason().Status()
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer") // RFC 9110 §11.6.1
	}
	if after := v.RetryAfter(); after > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((after+time.Second-1)/time.Second), 10))
	}
	if v.ShouldNotRetry() {
		h.Set("X-Should-Retry", "false") // the official SDKs obey it
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	n, _ := w.Write(body) // the caller is gone: nothing to do
	return int64(n)
}

// hint names the path that was probably meant, for the two mistakes that wrong base URLs make.
func hint(method, path string) string {
	if rest, ok := strings.CutPrefix(path, "/v1/v1/"); ok {
		if _, _, known := vllm.Lookup(method, "/v1/"+rest); known {
			return "The path begins with /v1 twice: this client adds /v1 by itself, so its base URL is http(s)://HOST:PORT."
		}
	}
	if _, _, known := vllm.Lookup(method, "/v1"+path); known {
		return "The path lacks /v1: the client's base URL is http(s)://HOST:PORT/v1."
	}
	for _, other := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		if _, _, known := vllm.Lookup(other, path); known && other != method {
			return "The path exists with the method " + other + "."
		}
	}
	return "The base URL for clients is http(s)://HOST:PORT/v1."
}

// dropped names, for the x-vallum-dropped header, the fields that did not reach vLLM. Names come from the caller's
// body: what is not plain ASCII is not echoed.
func (x *exchange) dropped() string {
	var b strings.Builder
	for _, list := range [2][]string{x.facts.UnknownKeys, x.facts.Dropped} {
		for _, pointer := range list {
			if b.Len()+len(pointer) > 1024 {
				return b.String() + ", ...more"
			}
			if b.Len() > 0 {
				b.WriteString(", ")
			}
			for i := range len(pointer) {
				if c := pointer[i]; c > 0x20 && c < 0x7f && c != ',' {
					b.WriteByte(c)
				} else {
					b.WriteByte('?')
				}
			}
		}
	}
	return b.String()
}
