//go:build conformance

package conformance

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"

	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/conformance/report"
)

const (
	transcriptions = "/v1/audio/transcriptions"
	translations   = "/v1/audio/translations"
)

// tone is half a second of a sine wave as a WAV file: 16 bits, mono, 16 kHz,
// which the model hears, so that nothing is resampled.
func tone(hertz float64) string {
	const rate = 16_000
	samples := make([]int16, rate/2)
	for i := range samples {
		samples[i] = int16(8_000 * math.Sin(2*math.Pi*hertz*float64(i)/rate))
	}
	data := uint32(2 * len(samples))
	var b bytes.Buffer
	b.WriteString("RIFF")
	write := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	write(36 + data)
	b.WriteString("WAVEfmt ")
	write([]uint32{16, 1 | 1<<16, rate, 2 * rate, 2 | 16<<16}) // PCM, one channel
	b.WriteString("data")
	write(data)
	write(samples)
	return b.String()
}

// part is one part of a form, its headers as they stand.
type part struct{ head, content string }

func text(name, value string) part {
	return part{fmt.Sprintf(`Content-Disposition: form-data; name="%s"`, name), value}
}

// sound is the file of a form. Name is its file name.
func sound(name string, hertz float64) part {
	return part{fmt.Sprintf("Content-Disposition: form-data; name=\"file\"; filename=\"%s\"\r\nContent-Type: audio/wav", name), tone(hertz)}
}

// form is a request with the parts in the order given.
func form(path string, all ...part) call {
	var b strings.Builder
	for _, p := range all {
		fmt.Fprintf(&b, "--b\r\n%s\r\n\r\n%s\r\n", p.head, p.content)
	}
	b.WriteString("--b--\r\n")
	return call{method: "POST", path: path, body: b.String(), header: map[string]string{"Content-Type": "multipart/form-data; boundary=b"}}
}

// hear is a short form about a tone, with more parts after the usual ones.
func hear(path string, more ...part) call {
	usual := []part{sound("a.wav", 440), text("model", "tiny-speech"), text("max_completion_tokens", "8")}
	return form(path, append(usual, more...)...)
}

// attacksOnSpeech are inference without a key, forms that say one thing to a
// checker and another to vLLM's parser, and fields that nobody is granted.
func attacksOnSpeech() []proof {
	return slices.Concat(proofsOf([]attack{
		{name: "inference without a key on " + transcriptions, request: hear(transcriptions), directWorks: ok(`"text"`), through: inferenceMay},
		{name: "inference without a key on " + translations, request: hear(translations), directWorks: ok(`"text"`), through: inferenceMay},
		{name: "/tokenize without a key", request: post("/tokenize", doc{"prompt": "hello"}), directWorks: ok(`"tokens"`), through: nobodyMay},
	}), proofsOf(oddForms()), proofsOf([]attack{
		{
			name: "beam search multiplies the work", directWorks: ok(`"text"`), through: notStrictJSON,
			request: hear(transcriptions, text("use_beam_search", "true"), text("n", "5")),
		},
		{
			name: "vllm_xargs in a form carries transfer parameters past field checks", directWorks: status(500), through: refusedInBody,
			request: hear(transcriptions, text("vllm_xargs", `{"kv_transfer_params":"x"}`)),
		},
		{
			name: "watermarking=false takes the operator's watermark out", directWorks: ok(`"text"`), through: refusedInBody,
			request: hear(transcriptions, text("watermarking", "false")),
		},
	}), []proof{{"a file's name is repeated by vLLM", fileNameIsRepeated}})
}

// oddForms are read by vLLM's parser, and may be read otherwise by another.
func oddForms() []attack {
	streams := ok("data: ", "transcription.chunk")
	noted := func(c call, contentType string) call {
		c.header = map[string]string{"Content-Type": contentType}
		return c
	}
	return []attack{
		{
			name: "two models in one form: the last wins", directWorks: ok(`"text"`), through: notStrictJSON,
			request: form(transcriptions, text("model", "nope"), sound("a.wav", 440), text("max_completion_tokens", "8"), text("model", "tiny-speech")),
		},
		{
			name: "two files in one form: the last is heard", directWorks: ok(`"text"`), through: notStrictJSON,
			request: form(transcriptions, part{`Content-Disposition: form-data; name="file"; filename="a.wav"`, "no sound"}, sound("a.wav", 440), text("model", "tiny-speech")),
		},
		{
			name: "a field with two names in its header", directWorks: streams, through: notStrictJSON,
			request: hear(transcriptions, part{`Content-Disposition: form-data; name="user"; name="stream"`, "true"}),
		},
		{
			name: "a field with another name in name*", directWorks: streams, through: notStrictJSON,
			request: hear(transcriptions, part{`Content-Disposition: form-data; name="stream"; name*=utf-8''user`, "true"}),
		},
		{
			name: "a field with two headers that name it", directWorks: streams, through: notStrictJSON,
			request: hear(transcriptions, part{"Content-Disposition: form-data; name=\"user\"\r\nContent-Disposition: form-data; name=\"stream\"", "true"}),
		},
		{
			name: "a field that says it is in base64 and is not", directWorks: streams, through: notStrictJSON,
			request: hear(transcriptions, part{"Content-Disposition: form-data; name=\"stream\"\r\nContent-Transfer-Encoding: base64", "true"}),
		},
		{
			name: "two boundaries in one Content-Type: the last wins", directWorks: ok(`"text"`), through: notStrictJSON,
			request: noted(hear(transcriptions), "multipart/form-data; boundary=other; boundary=b"),
		},
	}
}

// fileNameIsRepeated: vLLM takes a file's name as it stands, dots and all, and
// repeats it in an error. Through Vallum no field but the sound may be a file,
// and the name of the sound stays behind: no record has it. That it does not
// reach vLLM either is shown by headersStayBehind: vLLM's log is silent about it.
func fileNameIsRepeated(p *report.Proof, s *stand) {
	leaf := randomHex()
	name := "../../" + leaf
	bad := hear(transcriptions, part{fmt.Sprintf(`Content-Disposition: form-data; name="prompt"; filename="%s"`, name), "x"})
	if got := s.holder().do(p, bad); got.status != http.StatusBadRequest || !bytes.Contains(got.body, []byte("UploadFile(filename=")) || !bytes.Contains(got.body, []byte("../..")) {
		p.Fatalf("vLLM alone did not repeat the name: %s", got)
	}
	s.needGate(p)
	if err := refused("bad_body")(s.as("anna").do(p, bad)); err != nil {
		p.Errorf("through Vallum: %v", err)
	}
	before := s.arrived(p, transcriptions)
	good := s.as("anna").do(p, form(transcriptions, sound(name+".wav", 440), text("model", "tiny-speech"), text("max_completion_tokens", "2")))
	if good.status != http.StatusOK || s.arrived(p, transcriptions) != before+1 {
		p.Errorf("a sound of any name has to work through Vallum: %s", good)
	}
	searchAllFor(p, s, leaf)
}

// searchAllFor looks for a text in what the gateway wrote.
func searchAllFor(p *report.Proof, s *stand, text string) {
	p.Helper()
	records, err := realvallum.Records(s.gate.State)
	if err != nil {
		p.Fatal(err)
	}
	said, err := s.gate.Said()
	if err != nil {
		p.Fatal(err)
	}
	for where, all := range map[string]string{"the records": fmt.Sprint(records), "what the gateway printed": string(said)} {
		if len(all) == 0 || strings.Contains(all, text) {
			p.Errorf("%q stands in %s, or nothing was searched (%d bytes)", text, where, len(all))
		}
	}
}

func operationsOfSpeech() []operation {
	german, verbose := text("language", "de"), text("response_format", "verbose_json")
	stream1, usage := text("stream", "true"), text("stream_include_usage", "true")
	return []operation{
		{name: "transcription", request: hear(transcriptions), good: ok(`"text"`, `"seconds":1`)},
		{name: "transcription of a language with a prompt", request: hear(transcriptions, german, text("prompt", `größe "x"`)), good: ok(`"text"`)},
		{name: "transcription, verbose", request: hear(transcriptions, verbose, text("timestamp_granularities[]", "segment")), good: ok(`"duration":0.5`, `"language"`)},
		{name: "transcription, streamed", request: hear(transcriptions, stream1), good: both(stream(3, "[DONE]"), ok("transcription.chunk"))},
		{name: "transcription, streamed with usage", request: hear(transcriptions, stream1, usage), good: both(stream(4, "[DONE]"), ok(`"total_tokens"`))},
		{name: "translation", request: hear(translations), good: ok(`"text"`)},
		{name: "translation, streamed", request: hear(translations, stream1), good: both(stream(3, "[DONE]"), ok("translation.chunk"))},
		{name: "transcription without a model, of which there is one", request: form(transcriptions, sound("a.wav", 440), text("max_completion_tokens", "8")), good: ok(`"text"`)},
		{name: "models", request: get("/v1/models"), good: ok(`"tiny-speech"`)},
	}
}

func formsAreRebuilt() []proof {
	return []proof{
		{"works through Vallum: every sound is heard as it is", soundIsHeard},
		{"an unknown field and an unknown file of a form stay behind, and the caller is told", unknownStays},
	}
}

// soundIsHeard compares what the model makes of two tones, so that a rebuilt
// form with another sound in it, or a part of it, would be seen.
func soundIsHeard(p *report.Proof, s *stand) {
	about := func(t target, hertz float64) string {
		got := t.do(p, form(transcriptions, sound("a.wav", hertz), text("model", "tiny-speech"), text("language", "en")))
		said, _ := got.field("text").(string)
		if got.status != http.StatusOK || said == "" {
			p.Fatalf("a tone of %v Hz: %s", hertz, got)
		}
		return said
	}
	low, high := about(s.holder(), 440), about(s.holder(), 880)
	if low == high || low != about(s.holder(), 440) {
		p.Fatalf("vLLM alone does not tell tones apart, so a comparison shows nothing: %q, %q", low, high)
	}
	s.needGate(p)
	if got := about(s.as("anna"), 440); got != low {
		p.Errorf("440 Hz through Vallum: want %q, got %q", low, got)
	}
	if got := about(s.as("anna"), 880); got != high {
		p.Errorf("880 Hz through Vallum: want %q, got %q", high, got)
	}
}

// unknownStays: vLLM reads a whole form, files of unknown fields included, and
// says nothing about what it does not know.
func unknownStays(p *report.Proof, s *stand) {
	odd := hear(transcriptions, text("new_feature", "1"), part{`Content-Disposition: form-data; name="second_file"; filename="b.wav"`, tone(880)})
	if got := s.holder().do(p, odd); got.status != http.StatusOK {
		p.Fatalf("vLLM alone did not take it: %s", got)
	}
	s.needGate(p)
	got := s.as("anna").do(p, odd)
	if err := ok(`"text"`)(got); err != nil {
		p.Errorf("through Vallum: %v (reason %q)", err, got.header.Get("X-Vallum-Reason"))
	}
	for _, name := range []string{"new_feature", "second_file"} {
		if dropped := got.header.Get("X-Vallum-Dropped"); !strings.Contains(dropped, name) {
			p.Errorf("x-vallum-dropped does not name %q: %q", name, dropped)
		}
	}
}

func speechClientsPassUnchanged() []proof {
	return unchanged(pythonSDK("Python openai "+parts.OpenAIPython, "audio"))
}
