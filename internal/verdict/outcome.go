package verdict

import "time"

// Ended is how a forwarded request came to its end. The zero value means that it never began.
type Ended uint8

// The ends. A stream's HTTP status is 200 in all of them: only Complete is success.
const (
	NotForwarded       Ended = iota
	Complete                 // the upstream's whole answer left
	ClientLeft               // the caller went away first
	UpstreamAborted          // finish_reason "abort": the engine dropped the request (vLLM on SIGTERM)
	UpstreamErrorEvent       // an error event inside a 200 stream
	UpstreamEndedEarly       // the stream just ended, without its dialect's last event
	UpstreamError            // an HTTP error status, or no HTTP at all
	TimedOut                 // no first byte, or no next event, in time
	KeyRevoked               // the key, or its role, was taken away while it ran
	Drained                  // shutdown's deadline came first
	Panicked                 // a defect of Vallum
	NoMemory                 // the memory for all bodies was used up while the answer came
	endedCount
)

var endedNames = [endedCount]string{
	"not_forwarded", "complete", "client_left", "upstream_aborted", "upstream_error_event", "upstream_ended_early",
	"upstream_error", "timeout", "revoked", "drained", "panic", "no_memory",
}

// String is the word in records and metric labels.
func (e Ended) String() string {
	if e >= endedCount {
		return endedNames[NotForwarded]
	}
	return endedNames[e]
}

// Reason is what a caller reads whose answer ended so before it was whole.
func (e Ended) Reason() Reason {
	switch e {
	case TimedOut:
		return UpstreamTimeout
	case KeyRevoked:
		return Revoked
	case NoMemory:
		return Busy
	case Drained:
		return ShuttingDown
	case Panicked:
		return InternalError
	}
	return UpstreamFailed
}

// Outcome is what became of a request that was given to an upstream.
type Outcome struct {
	Refusal    Verdict       // why, when nothing was written to the caller; allowed when an answer left
	Written    bool          // a status line left for the caller: nothing can be refused any more
	Status     int           // the status that the caller saw; 0 when nothing was written
	UpStatus   int           // the status that the upstream sent; 0 when none came
	Ended      Ended         // how it ended
	Cause      error         // for the operator; nil on success
	BytesUp    int64         // body bytes sent upstream
	Unsent     bool          // no connection could be made: not one byte of the request left, and another upstream may have it
	BytesDown  int64         // body bytes sent to the caller
	FirstByte  time.Duration // from sending to the first body byte or event of the answer; 0 when none came
	Upstream   time.Duration // from sending to the upstream's last byte
	Events     int64         // SSE events relayed
	UpMessage  string        // the upstream's own error text, for the operator's log only, bounded to 2 KiB
	InterEvent time.Duration // mean time between content events of a stream; 0 when fewer than two
}

// Cut is the cause (context.Cause) with which the gateway itself ends a request that runs: a key that was revoked, a
// deadline of the shutdown. A context that ends with any other cause means that the client left.
type Cut struct{ Ended Ended }

// The causes there are.
var (
	ErrRevoked = &Cut{KeyRevoked}
	ErrDrained = &Cut{Drained}
)

func (c *Cut) Error() string { return "request ended by the gateway: " + c.Ended.String() }

// Reason is what the caller is told.
func (c *Cut) Reason() Reason { return c.Ended.Reason() }
