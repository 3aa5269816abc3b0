//go:build conformance

package conformance

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"

	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/conformance/report"
)

// slow is a file whose length says nothing: a WAV of 8 bits at 1 Hz, a byte for
// each second.
func slow(seconds int) part {
	var b bytes.Buffer
	b.WriteString("RIFF")
	for _, v := range []any{uint32(36 + seconds), []byte("WAVEfmt "), []uint32{16, 1 | 1<<16, 1, 1, 1 | 8<<16}, []byte("data"), uint32(seconds), bytes.Repeat([]byte{128}, seconds)} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return part{sound("a.wav", 440).head, b.String()}
}

// long is half a minute of a tone: a megabyte.
func long() part {
	p := sound("a.wav", 440)
	head, half := p.content[:44], p.content[44:]
	data := bytes.Repeat([]byte(half), 66)
	var b bytes.Buffer
	b.WriteString(head[:40])
	if err := binary.Write(&b, binary.LittleEndian, uint32(len(data))); err != nil {
		panic(err)
	}
	return part{p.head, b.String() + string(data)}
}

// soundCosts are sounds, and what a record has to say of each.
var soundCosts = []struct {
	name    string
	request call
	usage   string
	prompt  float64 // 0: any
}{
	{"half a second, transcribed", hear(transcriptions), "estimated", 100},
	{"half a second, transcribed as text", hear(transcriptions, text("response_format", "text")), "estimated", 100},
	{"half a second, transcribed with timestamps", hear(transcriptions, text("response_format", "verbose_json")), "estimated", 100},
	{"half a second, translated with timestamps", hear(translations, text("response_format", "verbose_json")), "estimated", 100},
	{"half a second, translated: vLLM tells nothing", hear(translations), "estimated", 0},
	{"half a second, streamed", hear(transcriptions, text("stream", "true")), "counted", 0},
	{"half a minute in 74 bytes", form(transcriptions, slow(30), text("model", "tiny-speech"), text("max_completion_tokens", "2")), "estimated", 3000},
	{"half a minute in a megabyte", form(transcriptions, long(), text("model", "tiny-speech"), text("max_completion_tokens", "2")), "estimated", 3300},
}

// soundIsCharged: a file's length says nothing of how much vLLM hears, and it
// tells no tokens of a whole answer. The gateway reserves what vLLM hears at
// most, and charges the seconds that it tells, or the reservation.
var soundIsCharged = proof{"sound costs what vLLM heard of it, whatever its file says, and never more than was reserved", func(p *report.Proof, s *stand) {
	if got := s.holder().do(p, soundCosts[6].request); got.status != http.StatusOK || got.number("usage.seconds") != 30 {
		p.Fatalf("vLLM alone does not hear half a minute in 74 bytes, so they show nothing: %s", got)
	}
	over := form(transcriptions, slow(601), text("model", "tiny-speech"))
	if got := s.holder().do(p, over); got.status != http.StatusBadRequest {
		p.Errorf("vLLM alone hears more than the 600 s that are reserved: %s", got)
	}
	s.needGate(p)
	for _, c := range soundCosts {
		got := s.as("anna").do(p, c.request)
		r := s.gate.recordOf(p, got.header.Get("X-Request-Id"))
		prompt, completion, reserved := amount(r, "prompt_tokens"), amount(r, "completion_tokens"), amount(r, "reserved_tokens")
		p.Logf("%s: %d, %v and %v tokens of %v, %v", c.name, got.status, prompt, completion, reserved, r["usage"])
		if got.status != http.StatusOK || fmt.Sprint(r["usage"]) != c.usage || c.prompt != 0 && prompt != c.prompt || reserved <= 60_000 || prompt+completion > reserved || prompt == 0 {
			p.Errorf("%s: %d, recorded as %v", c.name, got.status, r)
		}
	}
	if r := s.gate.recordOf(p, s.as("anna").do(p, over).header.Get("X-Request-Id")); amount(r, "status") != http.StatusBadRequest || fmt.Sprint(r["usage"]) != "none" {
		p.Errorf("a sound that vLLM refused: %v", r)
	}
}}

// amount is a number of a record; 0 where it has none.
func amount(r realvallum.Record, name string) float64 {
	n, _ := r[name].(float64)
	return n
}

// recordOf is the last record of a request, once it has ended.
func (g *gate) recordOf(p *report.Proof, id string) realvallum.Record {
	p.Helper()
	if _, err := g.ended(id); err != nil {
		p.Fatal(err)
	}
	records, err := realvallum.Records(g.State)
	if err != nil {
		p.Fatal(err)
	}
	var last realvallum.Record
	for _, r := range records {
		if r["id"] == id {
			last = r
		}
	}
	return last
}
