package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/vallum/vallum/internal/audit/chain"
)

// Event says what a line records. The zero Event is refused by Append.
type Event string

// The events, each with the fields that go with it (docs/audit.md has the table).
const (
	Admitted   Event = "admitted"  // a request was granted and may be forwarded once this line is written
	Ended      Event = "ended"     // an admitted request is over, however it ended
	Refused    Event = "refused"   // a known principal was refused
	Counted    Event = "counted"   // refusals of nobody, added up by reason, network and minute
	Recovered  Event = "recovered" // start-up cut an unfinished line, or writing works again after it had failed
	Pruned     Event = "pruned"    // retention is about to delete all lines up to pruned_through
	Started    Event = "started"   // the daemon began
	Stopped    Event = "stopped"   // the daemon ended in good order
	Reloaded   Event = "reloaded"  // a new configuration is in force
	KeyChanged Event = "key"       // a key was created, rotated, revoked or imported
)

func (e Event) known() bool {
	switch e {
	case Admitted, Ended, Refused, Counted, Recovered, Pruned, Started, Stopped, Reloaded, KeyChanged:
		return true
	}
	return false
}

// mustKeep says which lines may use the disk reserve and are retried: losing one would leave
// a request that happened without its end, or a gap that nothing explains.
func (e Event) mustKeep() bool {
	switch e {
	case Ended, Recovered, Pruned, Stopped, KeyChanged:
		return true
	}
	return false
}

// Values of Record.Usage.
const (
	UsageCounted   = "counted"   // the upstream's own figures
	UsageEstimated = "estimated" // our bound, because the upstream's figures never came
	UsageNone      = "none"      // the operation has no tokens
)

// Values of Record.Ended.
const (
	EndedComplete           = "complete"             // the reply went out whole
	EndedClientLeft         = "client_left"          // the caller went away first
	EndedUpstreamAborted    = "upstream_aborted"     // vLLM said finish_reason "abort"
	EndedUpstreamErrorEvent = "upstream_error_event" // an error event inside a 200
	EndedUpstreamEarly      = "upstream_ended_early" // the stream just stopped
	EndedTimeout            = "timeout"              // one of the upstream deadlines
	EndedRevoked            = "revoked"              // the key was revoked while the stream ran
	EndedRefused            = "refused"              // refused after it had been admitted
)

// Record is one line of the log. It has no field for prompt or output text, on purpose.
// Append sets Seq and Prev, and Time when it is zero; text that is longer than its bound is cut and ends in "…".
type Record struct {
	Seq   uint64    `json:"seq,omitempty"`  // 1, 2, 3 …; set by Append
	Prev  string    `json:"prev,omitempty"` // SHA-256 of the line before, in hex; set by Append
	Time  time.Time `json:"time"`           // UTC, nanoseconds
	Event Event     `json:"event"`

	// PrunedThrough is the last line that retention deletes (event pruned, set by the log itself).
	PrunedThrough uint64 `json:"pruned_through,omitempty"`

	ID              string `json:"id,omitempty"`                // X-Request-Id of the response
	ClientRequestID string `json:"client_request_id,omitempty"` // the caller's own, at most 128 bytes
	Principal       string `json:"principal,omitempty"`         // name of the key
	KeyID           string `json:"key_id,omitempty"`            // public part of the key, never the secret
	Tenant          string `json:"tenant,omitempty"`
	Remote          string `json:"remote,omitempty"` // address, or for counted the network /24 or /64
	Operation       string `json:"operation,omitempty"`
	Model           string `json:"model,omitempty"`
	Upstream        string `json:"upstream,omitempty"` // its name in the configuration
	Rule            string `json:"rule,omitempty"`     // what decided
	Reason          string `json:"reason,omitempty"`   // verdict.Reason of a refusal
	Status          int    `json:"status,omitempty"`   // HTTP status that the caller got

	BytesIn          int64  `json:"bytes_in,omitempty"`  // request body as received
	BytesOut         int64  `json:"bytes_out,omitempty"` // response body as sent
	PromptTokens     int64  `json:"prompt_tokens,omitempty"`
	CachedTokens     int64  `json:"cached_tokens,omitempty"`
	CompletionTokens int64  `json:"completion_tokens,omitempty"`
	Usage            string `json:"usage,omitempty"`           // counted, estimated or none
	ReservedTokens   int64  `json:"reserved_tokens,omitempty"` // what the limit held for the request

	TTFTMillis     float64 `json:"ttft_ms,omitempty"`     // from forwarding to the first byte of the reply's body
	UpstreamMillis float64 `json:"upstream_ms,omitempty"` // time spent waiting for the upstream
	DurationMillis float64 `json:"duration_ms,omitempty"` // from the first header byte to the end

	Ended   string   `json:"ended,omitempty"`   // how it ended
	Dropped []string `json:"dropped,omitempty"` // JSON pointers of fields that did not go up; at most 32 of 96 bytes
	Edits   []string `json:"edits,omitempty"`   // names of the edits made to the body; at most 32 of 96 bytes

	Count  uint64 `json:"count,omitempty"`  // counted: how many; recovered: lines lost for want of room
	Minute string `json:"minute,omitempty"` // counted: start of the minute, RFC 3339
	Bytes  int64  `json:"bytes,omitempty"`  // recovered: bytes cut from the end of the last segment
	Detail string `json:"detail,omitempty"` // the operator's sentence for events that are not requests; at most 512 bytes
}

// Bounds on text. A caller chooses the model name, its own request id and the names of fields,
// so none of them may make a line longer than chain.MaxLineBytes or carry a prompt of any size into the log.
const (
	maxText, maxID, maxDetail = 256, 128, 512
	maxItems, maxItem         = 32, 96
)

// Millis gives d in milliseconds, rounded to a microsecond, as the _ms fields have it.
func Millis(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

// appendBody appends r as JSON without seq, prev and the opening brace: the sequencer puts
// those in front, so that the rest is encoded by the callers in parallel.
// The fields stand in the order of the type; a test compares with encoding/json.
func appendBody(dst []byte, r *Record) ([]byte, error) {
	if !r.Event.known() {
		return nil, fmt.Errorf("record has the unknown event %q", r.Event)
	}
	dst = append(dst, `"time":"`...)
	dst = r.Time.UTC().AppendFormat(dst, chain.TimeLayout)
	dst = append(dst, `","event":"`...)
	dst = append(dst, r.Event...)
	dst = append(dst, '"')
	dst = appendUint(dst, "pruned_through", r.PrunedThrough)
	dst = appendWho(dst, r)
	dst = appendInt(dst, "status", int64(r.Status))
	dst = appendInt(dst, "bytes_in", r.BytesIn)
	dst = appendInt(dst, "bytes_out", r.BytesOut)
	dst = appendInt(dst, "prompt_tokens", r.PromptTokens)
	dst = appendInt(dst, "cached_tokens", r.CachedTokens)
	dst = appendInt(dst, "completion_tokens", r.CompletionTokens)
	dst = appendText(dst, "usage", r.Usage, maxText)
	dst = appendInt(dst, "reserved_tokens", r.ReservedTokens)
	dst = appendMillis(dst, "ttft_ms", r.TTFTMillis)
	dst = appendMillis(dst, "upstream_ms", r.UpstreamMillis)
	dst = appendMillis(dst, "duration_ms", r.DurationMillis)
	dst = appendText(dst, "ended", r.Ended, maxText)
	dst = appendList(dst, "dropped", r.Dropped)
	dst = appendList(dst, "edits", r.Edits)
	dst = appendUint(dst, "count", r.Count)
	dst = appendText(dst, "minute", r.Minute, maxText)
	dst = appendInt(dst, "bytes", r.Bytes)
	dst = appendText(dst, "detail", r.Detail, maxDetail)
	return append(dst, '}'), nil
}

func appendWho(dst []byte, r *Record) []byte {
	dst = appendText(dst, "id", r.ID, maxID)
	dst = appendText(dst, "client_request_id", r.ClientRequestID, maxID)
	dst = appendText(dst, "principal", r.Principal, maxText)
	dst = appendText(dst, "key_id", r.KeyID, maxID)
	dst = appendText(dst, "tenant", r.Tenant, maxText)
	dst = appendText(dst, "remote", r.Remote, maxID)
	dst = appendText(dst, "operation", r.Operation, maxText)
	dst = appendText(dst, "model", r.Model, maxText)
	dst = appendText(dst, "upstream", r.Upstream, maxText)
	dst = appendText(dst, "rule", r.Rule, maxText)
	return appendText(dst, "reason", r.Reason, maxText)
}

func appendKey(dst []byte, key string) []byte {
	dst = append(dst, ',', '"')
	dst = append(dst, key...)
	return append(dst, '"', ':')
}

func appendInt(dst []byte, key string, n int64) []byte {
	if n == 0 {
		return dst
	}
	return strconv.AppendInt(appendKey(dst, key), n, 10)
}

func appendUint(dst []byte, key string, n uint64) []byte {
	if n == 0 {
		return dst
	}
	return strconv.AppendUint(appendKey(dst, key), n, 10)
}

func appendMillis(dst []byte, key string, ms float64) []byte {
	if ms == 0 || math.IsNaN(ms) || math.IsInf(ms, 0) { // JSON has no word for the last two
		return dst
	}
	return strconv.AppendFloat(appendKey(dst, key), ms, 'f', -1, 64)
}

func appendText(dst []byte, key, s string, limit int) []byte {
	if s == "" {
		return dst
	}
	return appendQuoted(appendKey(dst, key), bound(s, limit))
}

func appendList(dst []byte, key string, list []string) []byte {
	if len(list) == 0 {
		return dst
	}
	dst = append(appendKey(dst, key), '[')
	for i, s := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		if i == maxItems {
			dst = appendQuoted(dst, "… and "+strconv.Itoa(len(list)-i)+" more")
			break
		}
		dst = appendQuoted(dst, bound(s, maxItem))
	}
	return append(dst, ']')
}

// appendQuoted takes the short way for plain ASCII and leaves every other byte to encoding/json,
// which escapes control characters and replaces invalid UTF-8: no caller can end a line or a string.
func appendQuoted(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil { // cannot happen for a string
				return append(dst, `""`...)
			}
			return append(dst, quoted...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// bound cuts s to at most limit bytes, the "…" that shows it included, never inside a rune.
func bound(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	const mark = "…"
	n := limit - len(mark)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}

// decode reads one line of the log back.
func decode(line []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return Record{}, fmt.Errorf("not a record: %w", err)
	}
	if r.Seq == 0 || !r.Event.known() {
		return Record{}, errors.New("not a record: no seq or an unknown event")
	}
	return r, nil
}
