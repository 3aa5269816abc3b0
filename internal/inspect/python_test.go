package inspect

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/vllm"
)

// pythonReader answers each line of hex, which is a body, with one line: what json.loads makes of it in a form that
// keeps order and spelling, or "error". It is what FastAPI does: bytes go to json.loads as they are.
//
//go:embed testdata/loads.py
var pythonReader string

// python is a running interpreter; nil when there is none.
type python struct {
	mu  sync.Mutex
	in  io.Writer
	out *bufio.Reader
}

func startPython(t testing.TB) *python {
	t.Helper()
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Log("NOT RUN live: python3 is not here; the recorded verdicts are checked instead")
		return nil
	}
	cmd := exec.Command(path, "-u", "-c", pythonReader)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return &python{in: in, out: bufio.NewReaderSize(out, 1<<20)}
}

func (p *python) loads(t testing.TB, body []byte) string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := fmt.Fprintln(p.in, hex.EncodeToString(body)); err != nil {
		t.Fatal(err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

// normal is Go's reading of a body in the same form.
func normal(t testing.TB, body []byte) string {
	t.Helper()
	var b strings.Builder
	dec := jsontext.NewDecoder(bytes.NewBuffer(body))
	for {
		tok, err := dec.ReadToken()
		if err == io.EOF {
			return b.String()
		}
		if err != nil {
			t.Fatalf("accepted, but not JSON: %q: %v", body, err)
		}
		switch tok.Kind() {
		case '"':
			b.WriteString("s" + hex.EncodeToString([]byte(tok.String())))
		case '0':
			b.WriteString("n" + tok.String())
		default:
			b.WriteString(string(tok.Kind()))
		}
		b.WriteByte(' ')
	}
}

// seeds are the bodies that both readers get in every run.
func seeds() []string {
	all := []string{
		`{}`, "{}\n", ` {"model":"m"} `, `{"a":"\u00e9\ud83d\ude00é😀"}`, `{"seed":9223372036854775807,"n":2.0,"temperature":-0}`,
		`{"max_tokens":1e0}`, `{"top_p":1E-400}`, `{"zz":[1.0,-0.0,1e5,123456789012345678901234567890]}`, `{"a":1,"\u0061":2}`, `{"a":"\ud800"}`,
		"\xef\xbb\xbf{}", "{\x00}\x00", `{"a":NaN}`, `{"a":1e999}`, `[]`, `null`, `{"a":tru}`, `{"a":1,}`, `{"":{"":[null,true,false,""]}}`,
		"{\"a\":\"\x7f\u2028\\u0000\\/\"}", `{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"text":"b","type":"text"}]}]}`,
		`{"messages":[{"content":"x","role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}],"refusal":null}]}`,
		`{"prompt":[[1,2],[3]],"stop":["a","b"],"logit_bias":{"5":-1,"6":null}}`,
		`{"stream_options":{"include_usage":false,"zz":{}},"stream":true,"user":"u"}`,
		`{"cache_salt":"mine","zz":1,"model":null,"priority":0}`, `{"zz":1,"yy":{"a":[1]}}`, `{"top_p":1,"zz":1,"yy":2,"min_p":0}`,
		`{"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"x":{"anyOf":[{"type":"null"},{"const":1.50}]}}}}}]}`,
		`{"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{},"strict":null}}}`,
		"{\"a\" :\t1\r\n,\"b\":[ ] }", "{\"a\":\"\x80\"}", "{\"a\":\"\xc0\xaf\"}", "{\"a\":\"\xf4\x90\x80\x80\"}", `{"a":"\x41"}`, `{"a":"` + "\t" + `"}`, `{"a":'b'}`, `{"a":.5}`, `{"a":+1}`, `{"a":0x1}`,
	}
	for _, row := range benchBodies() {
		if len(row[1]) < 4096 {
			all = append(all, row[1])
		}
	}
	return all
}

// agrees checks one body: what is accepted, Python reads the same, before and after the rewriting, and the rewritten
// body is accepted again and stays as it is.
func agrees(t testing.TB, loads func(testing.TB, []byte) string, operation string, body []byte) {
	t.Helper()
	d, v := Read(request(t, operation, string(body)), Default())
	if v.Refused() {
		return
	}
	if got, want := loads(t, body), normal(t, body); got != want {
		t.Fatalf("accepted, but read differently: %q\npython %s\nhere   %s", body, got, want)
	}
	b := mustRewrite(t, d)
	if got, want := loads(t, b.Bytes), normal(t, b.Bytes); got != want {
		t.Fatalf("rewritten, but read differently: %q\npython %s\nhere   %s", b.Bytes, got, want)
	}
	edits := []policy.Edit{
		{Name: "model", Pointer: "/model", Value: `"m"`},
		{Name: "cache_salt", Pointer: "/cache_salt", Value: `"s"`},
		{Name: "include_usage", Pointer: "/stream_options/include_usage", Value: "true"},
	}
	if !d.Facts().HasOptions {
		edits = edits[:2]
	}
	once := mustRewrite(t, d, edits...).Bytes
	again, v := Read(request(t, operation, string(once)), Default())
	if v.Refused() {
		t.Fatalf("rewritten, then refused: %q: %s", once, v.Message())
	}
	if twice := mustRewrite(t, again, edits...).Bytes; !bytes.Equal(once, twice) {
		t.Fatalf("not stable:\n%q\n%q\n%q", body, once, twice)
	}
	if f := again.Facts(); f.Model != "m" || len(f.UnknownKeys)+len(f.Dropped) > 0 || f.OutputCap != d.Facts().OutputCap || f.Stream != d.Facts().Stream {
		t.Fatalf("the rewritten body says something else: %q: %+v", once, f)
	}
}

var fuzzed = []string{"chat.create", "completions.create", "responses.create", "messages.create", "embeddings.create"}

// TestPythonReadsWhatWasAccepted holds the recorded answers of Python against ours; VALLUM_RECORD=1 writes them anew.
func TestPythonReadsWhatWasAccepted(t *testing.T) {
	const file = "testdata/python.json"
	recorded := map[string]string{}
	live := startPython(t)
	if os.Getenv("VALLUM_RECORD") == "" {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &recorded); err != nil {
			t.Fatal(err)
		}
	}
	loads := func(t testing.TB, body []byte) string {
		key := hex.EncodeToString(body)
		answer, ok := recorded[key]
		if live != nil {
			if now := live.loads(t, body); !ok && os.Getenv("VALLUM_RECORD") != "" {
				recorded[key], answer, ok = now, now, true
			} else if ok && now != answer {
				t.Errorf("%q: python3 here reads %s, the recorded one %s", body, now, answer)
			}
		}
		if !ok {
			t.Errorf("no recorded answer for %q; run with VALLUM_RECORD=1", body)
		}
		return answer
	}
	for _, body := range seeds() {
		loads(t, []byte(body))
		for _, operation := range fuzzed {
			agrees(t, loads, operation, []byte(body))
		}
	}
	if os.Getenv("VALLUM_RECORD") != "" && live != nil {
		text, err := json.MarshalIndent(recorded, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzRead is the same on any bytes, against a live Python where there is one.
func FuzzRead(f *testing.F) {
	for i, body := range seeds() {
		f.Add(i%len(fuzzed), []byte(body))
	}
	live := startPython(f)
	f.Fuzz(func(t *testing.T, operation int, body []byte) {
		loads := normalOnly
		if live != nil {
			loads = live.loads
		}
		agrees(t, loads, fuzzed[uint(operation)%uint(len(fuzzed))], body)
	})
}

// normalOnly stands in for a Python that is not here.
func normalOnly(t testing.TB, body []byte) string { return normal(t, body) }

// FuzzReadForm looks for panics and for what is built but not well formed.
func FuzzReadForm(f *testing.F) {
	f.Add("--XX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--XX--\r\n")
	f.Add("--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\nContent-Type: audio/mpeg\r\n\r\nID3\r\n--XX--\r\n")
	f.Add("--XX\nContent-Disposition: form-data; name=n; filename*=utf-8''x\n\n2\n--XX--")
	f.Fuzz(func(t *testing.T, body string) {
		d, v := Read(rawForm(t, body), Default())
		if v.Refused() {
			return
		}
		defer d.Close()
		table, _ := vllm.FieldsOf("audio.transcriptions")
		for _, p := range parts(t, mustRewrite(t, d)) {
			name, _, _ := strings.Cut(p, "|")
			if table.Body.Fields[name] == nil {
				t.Fatalf("the field %q goes up", name)
			}
		}
	})
}
