package vllmtest

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Behaviour is how the next fitting request is answered. The zero Behaviour answers as vLLM does.
type Behaviour struct {
	Kind    Kind
	Path    string        // the request's path; "" fits any POST
	After   int           // streams: events that pass before the trouble begins
	Stepped bool          // streams: each event waits for Server.Step
	Pause   time.Duration // before the first byte of the answer
	Status  int           // Answer: the status
	Body    string        // Answer: the body; Garbage: the bytes in the stream
	Type    string        // Answer: the content type; "" is application/json
	Header  []string      // Answer: further header lines, without line ends
	Size    int           // HugeEvent: bytes; 0 is 16 MiB
}

// Kind is a kind of trouble. A model's name chooses one too: "tiny--die-mid-event" is the model "tiny" that dies.
type Kind string

// The kinds. What is sent before the trouble is always well-formed.
const (
	Normal         Kind = ""
	Stepped        Kind = "stepped"          // as Behaviour.Stepped
	Answer         Kind = "answer"           // Status and Body as given
	NeverAnswer    Kind = "never-answer"     // silent until the client leaves: an engine that hangs
	SlowHeaders    Kind = "slow-headers"     // one byte of an endless header every 10 ms
	EndlessHeaders Kind = "endless-headers"  // header lines as fast as they are taken
	InterimStorm   Kind = "interim-storm"    // 103 answers without end
	TooShort       Kind = "too-short"        // fewer bytes than Content-Length says, then the end
	TooLong        Kind = "too-long"         // more bytes than Content-Length says
	NotHTTP        Kind = "not-http"         // something that is no answer at all
	DieBefore      Kind = "die-before"       // the connection breaks before any byte
	DieMidEvent    Kind = "die-mid-event"    // the connection breaks within an event, or within a plain answer
	Hang           Kind = "hang"             // an open, silent stream: a frozen vLLM
	JustEnds       Kind = "just-ends"        // a stream that ends well-formed, without its last events
	Garbage        Kind = "garbage"          // bytes in the stream that are no event
	HugeEvent      Kind = "huge-event"       // one event of Size bytes
	ErrorEvent     Kind = "error-event"      // vLLM's error event inside a 200, then [DONE]
	FinishAbort    Kind = "finish-abort"     // finish_reason "abort": a server that is shutting down; a response says "completed"
	CloseAfter     Kind = "close-after"      // a right answer, after which the connection closes without a word
	EngineDead     Kind = "engine-dead"      // 500 as from a dead engine
	Overloaded     Kind = "overloaded"       // 503 as from --max-num-queued-reqs
	NoUsage        Kind = "no-usage"         // a right answer without usage
	AbsurdUsage    Kind = "absurd-usage"     // a right answer whose usage is nonsense
	ServerHeaders  Kind = "server-headers"   // a right answer with headers that disclose: load metrics, cookies, ids
	BareStream     Kind = "bare-stream"      // a stream without any framing: ends by closing, Connection: close
	WrongType      Kind = "wrong-type"       // JSON that is called text/html
	SplitBytes     Kind = "split-bytes"      // a stream in writes of a single byte
	CarriageReturn Kind = "carriage-returns" // a stream whose lines end in CR LF
	KeepAlives     Kind = "keep-alives"      // a stream with comments between its events

	FinishAbortHarmony Kind = "finish-abort-harmony" // FinishAbort of a harmony model: a response says "cancelled"
)

// before does what happens instead of an answer. It reports whether the request is dealt with.
func (x *exchange) before() bool {
	b := &x.b
	if b.Pause > 0 && !x.wait(b.Pause) {
		return true
	}
	switch b.Kind {
	case Answer:
		kind := b.Type
		if kind == "" {
			kind = "application/json"
		}
		x.respond(b.Status, kind, b.Body, b.Header...)
	case EngineDead:
		x.fail(500, "InternalServerError", "EngineCore encountered an issue. See stack trace (above) for the root cause.")
	case Overloaded:
		x.fail(503, "Service Unavailable", "The engine is currently busy. Please try again later.")
	case NeverAnswer:
		<-x.ctx.Done()
		x.gone = true
	case DieBefore:
		x.broken = true
	case NotHTTP:
		x.write("220 mail.example.com ESMTP\r\n")
		x.broken = true
	case SlowHeaders:
		x.write("HTTP/1.1 200 OK\r\nx-slow: ")
		for x.wait(10*time.Millisecond) && x.write("a") {
			continue
		}
		x.broken = true
	case EndlessHeaders:
		x.write("HTTP/1.1 200 OK\r\n")
		for line := "x-endless: " + strings.Repeat("a", 1000) + "\r\n"; x.write(line); {
			continue
		}
		x.broken = true
	case InterimStorm:
		for x.write("HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n") {
			continue
		}
		x.broken = true
	default:
		return false
	}
	return true
}

// plain does the trouble of an answer that is not streamed. It reports whether the answer is dealt with.
func (x *exchange) plain(status int, kind, body string, header []string) bool {
	switch x.b.Kind {
	case TooShort:
		x.write(x.head(status, kind, header, fmt.Sprintf("content-length: %d", len(body)+100)) + body)
		x.broken = true
	case TooLong:
		x.write(x.head(status, kind, header, fmt.Sprintf("content-length: %d", len(body)/2)) + body)
		x.broken = true
	case DieMidEvent:
		x.write(x.head(status, kind, header, fmt.Sprintf("content-length: %d", len(body))) + body[:len(body)/2])
		x.broken = true
	case Hang:
		x.write(x.head(status, kind, header, fmt.Sprintf("content-length: %d", len(body))) + body[:len(body)/2])
		<-x.ctx.Done()
		x.gone = true
	default:
		return false
	}
	return true
}

// trouble does what befalls a stream before its event number n (from 0). It reports whether the stream goes on.
func (x *exchange) trouble(n int, event string) bool {
	b := &x.b
	if n != b.After {
		return true
	}
	switch b.Kind {
	case DieMidEvent:
		half := event[:len(event)/2]
		x.write(fmt.Sprintf("%x\r\n%s", len(event), half))
		x.broken = true
	case Hang:
		<-x.ctx.Done()
		x.gone = true
	case JustEnds:
		x.endStream()
	case Garbage:
		body := b.Body
		if body == "" {
			body = "<<<< \x00\xff not an event\n\ndata: {\"choices\":[{\n\ndata: 17\n\n"
		}
		x.chunk(body)
		return true
	case HugeEvent:
		x.hugeEvent()
		return true
	case ErrorEvent:
		x.errorEvent()
	default:
		return true
	}
	return false
}

func (x *exchange) hugeEvent() {
	size := x.b.Size
	if size == 0 {
		size = 16 << 20
	}
	x.write(fmt.Sprintf("%x\r\ndata: ", size))
	piece := strings.Repeat("a", 64<<10)
	for left := size - len("data: \n\n"); left > 0; left -= len(piece) {
		if !x.write(piece[:min(left, len(piece))]) {
			return
		}
	}
	x.write("\n\n\r\n")
}

// wait reports whether the client was still there after d.
func (x *exchange) wait(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-x.ctx.Done():
		x.gone = true
	}
	return false
}

// write sends bytes as they stand. It reports whether the client took them.
func (x *exchange) write(s string) bool {
	if x.gone || x.broken {
		return false
	}
	if _, err := io.WriteString(x.c, s); err != nil {
		x.gone = true
	}
	return !x.gone
}
