package reply

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// stream gives the events to a reply one by one and returns what left, with the end.
func stream(r *Reply, cause verdict.Ended, events ...string) string {
	var out strings.Builder
	for _, e := range events {
		out.Write(r.Event([]byte(e)))
	}
	out.Write(r.Finish(cause))
	return out.String()
}

func chunk(text string) string {
	return `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":[{"index":0,"delta":{"content":"` + text + `"},"finish_reason":null}]}` + "\n\n"
}

const (
	last       = `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"system_fingerprint":"vllm-0.32.0-abc"}` + "\n\n"
	usageChunk = `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":[],"usage":{"prompt_tokens":21,"total_tokens":25,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":16}}}` + "\n\n"
)

func TestChatStream(t *testing.T) {
	op := operation(t, "chat.create")
	text := chunk(`\"model\":\"tiny\" \"usage\"`)
	asked := strings.NewReplacer(`"model":"tiny"`, `"model":"gpt"`, `,"system_fingerprint":"vllm-0.32.0-abc"`, "", `\"model\":\"tiny\"`, `\"model\":\"tiny\"`)
	for _, c := range []struct {
		what string
		o    Options
		in   []string
		out  string
	}{
		{"plain: byte for byte but for the fingerprint", Options{}, []string{chunk("a"), text, last, done}, chunk("a") + text + strings.Replace(last, `,"system_fingerprint":"vllm-0.32.0-abc"`, "", 1) + done},
		{"another name, in every event and not in the text", Options{Model: "gpt"}, []string{chunk("a"), text, last, done}, asked.Replace(chunk("a") + text + last + done)},
		{"usage that only we asked for", Options{InjectedUsage: true}, []string{chunk("a"), usageChunk, done}, chunk("a") + done},
		{"usage that the caller asked for", Options{HideCached: true}, []string{chunk("a"), usageChunk, done}, chunk("a") + strings.Replace(usageChunk, `:16`, `:0`, 1) + done},
		{"addresses of the engine", Options{}, []string{strings.Replace(chunk("a"), `}]}`, `}],"kv_transfer_params":{"remote_host":"10.0.0.7"}}`, 1), done}, strings.Replace(chunk("a"), `}]}`, `}],"kv_transfer_params":null}`, 1) + done},
		{"comments and CRLF", Options{Model: "gpt"}, []string{": keep-alive\n\n", strings.ReplaceAll(chunk("a"), "\n", "\r\n"), chunk("b"), done}, ": keep-alive\n\n" + asked.Replace(strings.ReplaceAll(chunk("a"), "\n", "\r\n")+chunk("b")) + done},
		{"data on two lines", Options{Model: "gpt"}, []string{"data: {\"model\":\"tiny\",\ndata: \"choices\":[1]}\n\n", done}, "data: {\"model\":\"gpt\", \"choices\":[1]}\n\n" + done},
	} {
		c.o.Operation, c.o.Stream = op, true
		r := New(c.o)
		if got := stream(r, verdict.Complete, c.in...); got != c.out {
			t.Errorf("%s:\n got %s\nwant %s", c.what, got, c.out)
		}
		if r.Ended() != verdict.Complete {
			t.Errorf("%s: ended %s", c.what, r.Ended())
		}
	}
}

// Who leaves a stream of which vLLM joined the tokens got more than one in each event.
func TestJoinedTokensAreCountedOfWhoLeaves(t *testing.T) {
	op, _ := vllm.ByID("chat.create")
	r := New(Options{Operation: op, Model: "tiny", Stream: true})
	for range 10 {
		r.Event([]byte(chunk(" one")))
	}
	r.Event([]byte(chunk(strings.Repeat(" one", 1000))))
	r.Finish(verdict.ClientLeft)
	if n := r.Chunks(); n < 900 || n > 1100 {
		t.Errorf("%d tokens of 1010", n)
	}
}

func TestUsageOfAChatStream(t *testing.T) {
	r := New(Options{Operation: operation(t, "chat.create"), InjectedUsage: true, Stream: true})
	stream(r, verdict.Complete, chunk("a"), chunk("b"), usageChunk, done)
	if u := r.Usage(); u != (vllm.Usage{Prompt: 21, Cached: 16, Completion: 4, Counted: true}) || r.Chunks() != 2 {
		t.Errorf("%+v, %d chunks", u, r.Chunks())
	}
	// continuous usage is of one choice: a client that leaves early was not counted
	r = New(Options{Operation: operation(t, "chat.create"), Stream: true})
	stream(r, verdict.ClientLeft, strings.Replace(chunk("a"), `}]}`, `}],"usage":{"prompt_tokens":21,"completion_tokens":1}}`, 1))
	if u := r.Usage(); u.Counted || u.Prompt != 21 || u.Completion != 1 {
		t.Errorf("continuous: %+v", u)
	}
}

func event1(name, data string) string { return "event: " + name + "\ndata: " + data + "\n\n" }

func messages(stop string) []string {
	return []string{
		event1("message_start", `{"type":"message_start","message":{"id":"m","model":"tiny","usage":{"input_tokens":431,"output_tokens":0}}}`),
		event1("content_block_start", `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`),
		event1("content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hi"}}`),
		event1("content_block_stop", `{"type":"content_block_stop","index":0}`),
		event1("message_delta", `{"type":"message_delta","delta":{"stop_reason":`+stop+`,"stop_sequence":null},"usage":{"input_tokens":47,"output_tokens":5,"cache_creation_input_tokens":384}}`),
		event1("message_stop", `{"type":"message_stop"}`),
	}
}

func TestMessagesStream(t *testing.T) {
	op := operation(t, "messages.create")
	r := New(Options{Operation: op, Model: "claude", HideCached: true, Stream: true})
	in := messages(`"end_turn"`)
	got := stream(r, verdict.Complete, in...)
	want := strings.NewReplacer(`"model":"tiny"`, `"model":"claude"`, `"input_tokens":47`, `"input_tokens":431`, `creation_input_tokens":384`, `creation_input_tokens":0`).Replace(strings.Join(in, ""))
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	if u := r.Usage(); u != (vllm.Usage{Prompt: 431, Completion: 5, Counted: true}) || r.Chunks() != 1 || r.Ended() != verdict.Complete {
		t.Errorf("%+v, %d chunks, %s", u, r.Chunks(), r.Ended())
	}
	r = New(Options{Operation: op, Stream: true})
	if stream(r, verdict.Complete, messages("null")...); r.Ended() != verdict.UpstreamAborted {
		t.Errorf("an abort ended %s", r.Ended())
	}
	r = New(Options{Operation: op, Stream: true})
	if stream(r, verdict.ClientLeft, in[:3]...); r.Usage().Counted || r.Usage().Prompt != 431 || r.Chunks() != 1 || r.Ended() != verdict.ClientLeft {
		t.Errorf("left early: %+v %d %s", r.Usage(), r.Chunks(), r.Ended())
	}
}

func TestResponsesStream(t *testing.T) {
	r := New(Options{Operation: operation(t, "responses.create"), Model: "gpt", HideCached: true, Stream: true})
	in := []string{
		event1("response.created", `{"type":"response.created","sequence_number":0,"response":{"id":"r","model":"tiny","error":null,"status":"in_progress","usage":null}}`),
		event1("response.output_text.delta", `{"type":"response.output_text.delta","delta":"hi \"model\"","sequence_number":1}`),
		event1("response.completed", `{"type":"response.completed","sequence_number":2,"response":{"id":"r","model":"tiny","error":null,"status":"incomplete","usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":8,"cache_write_tokens":0},"output_tokens":7,"total_tokens":16}}}`),
	}
	got := stream(r, verdict.Complete, in...)
	want := strings.NewReplacer(`"model":"tiny"`, `"model":"gpt"`, `"cached_tokens":8`, `"cached_tokens":0`).Replace(strings.Join(in, ""))
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	if u := r.Usage(); u != (vllm.Usage{Prompt: 9, Cached: 8, Completion: 7, Counted: true}) || r.Chunks() != 1 || r.Ended() != verdict.Complete {
		t.Errorf("%+v, %d chunks, %s", u, r.Chunks(), r.Ended())
	}
}

// vLLM's own last events of a response, and what each means: status says more than the event's name.
func TestHowAResponsesStreamEnds(t *testing.T) {
	for _, c := range []struct {
		kind, status string
		output       int
		ended        verdict.Ended
	}{
		{"response.completed", "completed", 7, verdict.Complete},
		{"response.completed", "incomplete", 7, verdict.Complete},         // its length ended it, up to 0.32.0
		{"response.incomplete", "incomplete", 7, verdict.Complete},        // the same from 0.33.0 on
		{"response.completed", "cancelled", 7, verdict.UpstreamAborted},   // a harmony model's on SIGTERM
		{"response.completed", "incomplete", 0, verdict.UpstreamAborted},  // the same before its first token
		{"response.incomplete", "incomplete", 0, verdict.UpstreamAborted}, // the same from 0.33.0 on
		{"response.completed", "failed", 7, verdict.UpstreamAborted},
		{"response.failed", "failed", 7, verdict.UpstreamErrorEvent},
	} {
		r := New(Options{Operation: operation(t, "responses.create"), Stream: true})
		in := event1(c.kind, fmt.Sprintf(`{"response":{"id":"r","model":"tiny","status":%q,"output":[{"status":"completed"}],"usage":{"input_tokens":9,"output_tokens":%d,"total_tokens":16}},"sequence_number":2,"type":%q}`, c.status, c.output, c.kind))
		got := stream(r, verdict.Complete, event1("response.created", `{"response":{"id":"r","status":"in_progress"},"sequence_number":0,"type":"response.created"}`), in)
		if r.Ended() != c.ended {
			t.Errorf("%s with status %s and %d tokens ended %s, want %s", c.kind, c.status, c.output, r.Ended(), c.ended)
		}
		if c.ended != verdict.UpstreamErrorEvent && !strings.HasSuffix(got, in) {
			t.Errorf("%s with status %s: the caller reads %q", c.kind, c.status, got)
		}
	}
}

// How streams end that are no success, and what the caller reads at the end: never a bare close.
func TestStreamsThatEndBadly(t *testing.T) {
	chatError := `data: {"error":{"message":"canary /srv","type":"InternalServerError","param":null,"code":500}}` + "\n\n"
	for _, c := range []struct {
		what, op string
		in       []string
		cause    verdict.Ended
		ended    verdict.Ended
		tail     string
	}{
		{"chat just ends", "chat.create", []string{chunk("a")}, verdict.Complete, verdict.UpstreamEndedEarly, `"code":"upstream_failed"}}` + "\n\n" + done},
		{"chat says an error, and its own [DONE]", "chat.create", []string{chunk("a"), chatError, done}, verdict.Complete, verdict.UpstreamErrorEvent, `"code":"upstream_failed"}}` + "\n\n" + done},
		{"chat says an error and no more", "chat.create", []string{chatError}, verdict.UpstreamError, verdict.UpstreamErrorEvent, `"code":"upstream_failed"}}` + "\n\n" + done},
		{"chat is aborted", "chat.create", []string{strings.Replace(last, `"stop"`, `"abort"`, 1), done}, verdict.Complete, verdict.UpstreamAborted, done},
		{"chat goes silent", "chat.create", []string{chunk("a")}, verdict.TimedOut, verdict.TimedOut, `"code":"upstream_timeout"}}` + "\n\n" + done},
		{"the key is revoked", "chat.create", []string{chunk("a")}, verdict.KeyRevoked, verdict.KeyRevoked, `"code":"revoked"}}` + "\n\n" + done},
		{"the deadline of the drain comes", "chat.create", nil, verdict.Drained, verdict.Drained, `"code":"shutting_down"}}` + "\n\n" + done},
		{"responses meet the deadline of the drain", "responses.create", nil, verdict.Drained, verdict.Drained, `"code":"shutting_down"}}` + "\n\n"},
		{"the memory is used up", "chat.create", []string{chunk("a")}, verdict.NoMemory, verdict.NoMemory, `"code":"busy"}}` + "\n\n" + done},
		{"the client left", "chat.create", []string{chunk("a")}, verdict.ClientLeft, verdict.ClientLeft, chunk("a")},
		{"garbage", "chat.create", []string{"data: <html>\n\n"}, verdict.Complete, verdict.UpstreamErrorEvent, `"code":"upstream_failed"}}` + "\n\n" + done},
		{"half an object", "messages.create", []string{event1("message_start", `{"type":`)}, verdict.Complete, verdict.UpstreamErrorEvent, `"message":"The model server failed."}}` + "\n\n"},
		{"messages just end", "messages.create", messages(`"end_turn"`)[:3], verdict.Complete, verdict.UpstreamEndedEarly, `"message":"The model server failed."}}` + "\n\n"},
		{"messages say an error", "messages.create", []string{event1("error", `{"type":"error","error":{"type":"x","message":"canary"}}`)}, verdict.Complete, verdict.UpstreamErrorEvent, `"message":"The model server failed."}}` + "\n\n"},
		{"responses just end", "responses.create", []string{event1("response.created", `{"type":"response.created"}`)}, verdict.UpstreamError, verdict.UpstreamError, `"code":"upstream_failed"}}` + "\n\n"},
		{"responses say an error", "responses.create", []string{event1("response.failed", `{"type":"response.failed","response":{"error":{"message":"canary"}}}`)}, verdict.Complete, verdict.UpstreamErrorEvent, `"code":"upstream_failed"}}` + "\n\n"},
		{"a broken connection after the end is a success", "chat.create", []string{chunk("a"), done}, verdict.UpstreamError, verdict.Complete, done},
	} {
		r := New(Options{Operation: operation(t, c.op), Stream: true})
		got := stream(r, c.cause, c.in...)
		if r.Ended() != c.ended || !strings.HasSuffix(got, c.tail) || strings.Contains(got, "canary") {
			t.Errorf("%s: ended %s with %q; want %s with %q", c.what, r.Ended(), got, c.ended, c.tail)
		}
		if strings.Count(got, done) > 1 {
			t.Errorf("%s: two ends: %q", c.what, got)
		}
	}
}

func TestErrorEventsPassWhenTheOperatorSaysSo(t *testing.T) {
	e := `data: {"error":{"message":"words","code":500}}` + "\n\n"
	r := New(Options{Operation: operation(t, "chat.create"), Stream: true, PassErrors: true})
	if got := stream(r, verdict.Complete, e, done); got != e+done || r.Ended() != verdict.UpstreamErrorEvent || r.UpMessage() != "words" {
		t.Errorf("%q, %s, %q", got, r.Ended(), r.UpMessage())
	}
}

func FuzzEvent(f *testing.F) {
	f.Add([]byte(chunk("a")), []byte(usageChunk))
	f.Add([]byte(messages("null")[4]), []byte(": c\r\n\r\n"))
	f.Add([]byte("data: {\"system_fingerprint\":1,\"model\":\"x\"}\r\r"), []byte("data:{}\n\n"))
	f.Add([]byte(`data: {"usage":{"input_tokens":1,"cache_read_input_tokens":2}}`), []byte("event: x\ndata:\ndata: {\n\n"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, id := range []string{"chat.create", "messages.create", "responses.create"} {
			r := New(Options{Operation: operation(t, id), Model: "m", HideCached: true, InjectedUsage: true, Stream: true})
			for range 2 {
				r.Event(a)
				r.Event(b)
			}
			r.Finish(verdict.Complete)
			if r.Ended() == verdict.NotForwarded {
				t.Fatal("a finished stream has no end")
			}
		}
	})
}

func BenchmarkEvent(b *testing.B) {
	for _, c := range []struct {
		what string
		o    Options
	}{{"as it is", Options{}}, {"another name", Options{Model: "gpt-4o-mini", HideCached: true, InjectedUsage: true}}} {
		b.Run(c.what, func(b *testing.B) {
			c.o.Operation = operation(b, "chat.create")
			r := New(c.o)
			in := []byte(chunk("some text"))
			b.ReportAllocs()
			for b.Loop() {
				r.Event(in)
			}
		})
	}
}

func BenchmarkWhole(b *testing.B) {
	in := []byte(chatWhole)
	op := operation(b, "chat.create")
	b.ReportAllocs()
	for b.Loop() {
		if _, v := New(Options{Operation: op, Model: "gpt-4o-mini", HideCached: true}).Whole(200, "application/json", in); v.Refused() {
			b.Fatal(v.Err())
		}
	}
}

// The memory of a small event is the next one's. That of a large one is not: a writer that writes it without a copy of
// its own, as net/http's HTTP/2 does, may still be at it when its client has gone.
func TestALargeEventIsNobodyElses(t *testing.T) {
	r := New(Options{Operation: operation(t, "chat.create"), Stream: true, Model: "gpt"})
	r.Event([]byte(chunk("a"))) // the first one is read, the others are known by their beginning
	large := r.Event([]byte(chunk(strings.Repeat("x", 4<<10))))
	kept := string(large)
	small := r.Event([]byte(chunk("b")))
	if again := r.Event([]byte(chunk("c"))); &again[0] != &small[0] {
		t.Error("each small event takes memory of its own")
	}
	if string(large) != kept {
		t.Errorf("a large event was written over: %.40q", large)
	}
}
