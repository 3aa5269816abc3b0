package vllmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// exchange is one request and its answer.
type exchange struct {
	s      *Server
	c      net.Conn
	r      Recorded
	ctx    context.Context // ends when the client leaves
	number int
	b      Behaviour
	body   map[string]any // the JSON body, read as Python reads it: the last duplicate wins
	events int
	whole  bool // the answer was sent whole
	gone   bool // the client left
	broken bool // the connection is to break now
	over   func()
}

// run answers the request.
func (x *exchange) run() {
	defer x.ending()
	if x.s.o.Act != nil && !x.r.isProbe() {
		x.b, x.over = x.s.o.Act(x.ctx, x.r)
	} else if b, ok := x.s.take(x.r.Method, x.r.Path); ok {
		x.b = b
	}
	if x.s.unauthorized(&x.r) {
		x.respond(401, "application/json", `{"error":"Unauthorized"}`)
		return
	}
	handler, status := x.s.routes.find(&x.r)
	if status == 0 && x.b.Kind == Normal {
		x.byModelName()
	}
	if x.before() {
		return
	}
	switch status {
	case 0:
		handler(x)
	case 307:
		// Starlette builds the location of the Host header
		x.respond(307, "", "", "location: http://"+x.r.Header.Get("Host")+strings.TrimRight(x.r.Path, "/"))
	case 405:
		x.respond(405, "application/json", `{"detail":"Method Not Allowed"}`)
	default:
		x.respond(404, "application/json", `{"detail":"Not Found"}`)
	}
}

// ending tells who asked for it that the answer is about to end.
func (x *exchange) ending() {
	if over := x.over; over != nil {
		x.over = nil
		over()
	}
}

// byModelName takes a behaviour from the model's name: "tiny--hang" is "tiny" that hangs after its first event.
func (x *exchange) byModelName() {
	if !x.parse() {
		return
	}
	model, _ := x.body["model"].(string)
	base, kind, found := strings.Cut(model, "--")
	if !found {
		return
	}
	x.body["model"] = base
	x.b = Behaviour{Kind: Kind(kind), After: 1, Stepped: Kind(kind) == Stepped, Status: 400, Body: `{"error":"asked for"}`}
}

// keep reports whether the connection serves another request.
func (x *exchange) keep() bool {
	close := strings.EqualFold(x.r.Header.Get("Connection"), "close") || x.r.Proto != "HTTP/1.1" || x.b.Kind == CloseAfter
	return x.whole && !x.gone && !x.broken && !close
}

// head is the answer's head as uvicorn writes it.
func (x *exchange) head(status int, kind string, header []string, framing string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\ndate: %s\r\nserver: uvicorn\r\n", status, http.StatusText(status), time.Now().UTC().Format(http.TimeFormat))
	if framing != "" {
		b.WriteString(framing + "\r\n")
	}
	switch {
	case x.b.Kind == WrongType:
		b.WriteString("content-type: text/html\r\n")
	case kind != "":
		b.WriteString("content-type: " + kind + "\r\n")
	}
	for _, line := range header {
		b.WriteString(line + "\r\n")
	}
	if x.b.Kind == ServerHeaders {
		b.WriteString("endpoint-load-metrics: JSON {\"named_metrics\":{\"kv_cache_usage_perc\":0.5}}\r\nset-cookie: session=upstream\r\n" +
			"x-request-id: upstream-id\r\naccess-control-allow-origin: *\r\nvia: 1.1 upstream\r\n")
	}
	if status == 200 {
		b.WriteString("vary: Origin\r\n")
	}
	b.WriteString("\r\n")
	return b.String()
}

// respond sends a whole answer.
func (x *exchange) respond(status int, kind, body string, header ...string) {
	if x.plain(status, kind, body, header) {
		return
	}
	head := x.head(status, kind, header, fmt.Sprintf("content-length: %d", len(body)))
	if x.r.Method == "HEAD" {
		body = ""
	}
	x.ending()
	x.whole = x.write(head + body)
}

func (x *exchange) json(body string, args ...any) {
	x.respond(200, "application/json", fmt.Sprintf(body, args...))
}

// fail sends an error in OpenAI's form, or in Anthropic's under /v1/messages, with vLLM's integer code.
func (x *exchange) fail(status int, kind, message string) {
	if strings.HasPrefix(x.r.Path, "/v1/messages") {
		x.respond(status, "application/json", fmt.Sprintf(`{"type":"error","error":{"type":%s,"message":%s}}`, quote(kind), quote(message)))
		return
	}
	x.respond(status, "application/json", fmt.Sprintf(`{"error":{"message":%s,"type":%s,"param":null,"code":%d}}`, quote(message), quote(kind), status))
}

// stream begins server-sent events.
func (x *exchange) stream() {
	if x.b.Kind == BareStream {
		x.write(x.head(200, "text/event-stream; charset=utf-8", nil, "connection: close"))
		return
	}
	x.write(x.head(200, "text/event-stream; charset=utf-8", nil, "transfer-encoding: chunked"))
}

// event sends one event, which ends in an empty line, as one chunk. It reports whether the stream goes on.
func (x *exchange) event(event string) bool {
	if x.gone || x.broken || x.whole || !x.trouble(x.events, event) {
		return false
	}
	if x.b.Stepped {
		select {
		case <-x.s.steps:
		case <-x.ctx.Done():
			x.gone = true
			return false
		}
	} else if x.events > 0 && x.s.o.Interval > 0 && !x.wait(x.s.o.Interval) {
		return false
	}
	if x.ctx.Err() != nil {
		x.gone = true
		return false
	}
	x.events++
	switch x.b.Kind {
	case CarriageReturn:
		event = strings.ReplaceAll(event, "\n", "\r\n")
	case KeepAlives:
		x.chunk(": keep-alive\n\n")
	}
	return x.chunk(event)
}

// chunk sends bytes of a stream.
func (x *exchange) chunk(data string) bool {
	switch x.b.Kind {
	case BareStream:
		return x.write(data)
	case SplitBytes:
		for i := range len(data) {
			if !x.write("1\r\n" + data[i:i+1] + "\r\n") {
				return false
			}
		}
		return !x.gone
	}
	return x.write(fmt.Sprintf("%x\r\n%s\r\n", len(data), data))
}

// endStream ends a stream as HTTP ends one.
func (x *exchange) endStream() {
	if x.gone || x.broken || x.whole {
		return
	}
	x.ending()
	if x.b.Kind == BareStream {
		x.whole, x.broken = true, true
		return
	}
	x.whole = x.write("0\r\n\r\n")
}

// parse reads a JSON body once. It reports whether there is an object.
func (x *exchange) parse() bool {
	if x.body == nil {
		d := json.NewDecoder(strings.NewReader(string(x.r.Body)))
		d.UseNumber()
		var body map[string]any
		if d.Decode(&body) == nil && !d.More() {
			x.body = body
		}
	}
	return x.body != nil
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return string(b)
}
