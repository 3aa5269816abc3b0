//go:build conformance

package conformance

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/report"
	"github.com/vallum/vallum/internal/inspect"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/urlpath"
	"github.com/vallum/vallum/internal/vllm"
)

// How many random targets and forms the readers get. The generator's seed is
// printed and can be given again.
const (
	readerTargets = 20_000
	readerForms   = 1_500
	readerPart    = "uvicorn, Starlette of vLLM"
)

var readerProofs = []proof{
	{"a path that is accepted reads the same in a real uvicorn", pathsReadAlike},
	{"a form that is accepted, rebuilt, reads the same in a real Starlette", formsReadAlike},
	{"a form's values arrive in a real Starlette and nothing else: no file name, no type, no header of a part, no unknown field", headersStayBehind},
	{"a form that Starlette reads otherwise than a checker never arrives there", oddFormsNeverArrive},
	{"a schema that kills the process that makes vLLM's grammar of it is refused, and the worst that passes does not", schemasThatEndTheServer},
	{"a pattern that keeps the engine for seconds at each token is refused, and the worst that passes does not", patternsThatKeepTheEngine},
	{"what passes is nothing for which vLLM keeps errors by the hundred", fewErrors},
}

// TestReaders needs no running vLLM, only the HTTP stack of its venv.
func TestReaders(t *testing.T) {
	for _, pr := range readerProofs {
		table.Prove(t, readerPart, vllmVersion, pr.name, func(p *report.Proof) { pr.run(p, nil) })
	}
}

// startEcho starts the echo program in vLLM's venv and returns its URL.
func startEcho(p *report.Proof) string {
	p.Helper()
	dir, err := parts.Dir(parts.VLLM)
	if err != nil {
		p.NotRun("%v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		p.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(filepath.Join(dir, "venv", "bin", "python"), "readers/echo.py", port, vllmVersion)
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			p.Error(err)
		}
		_ = cmd.Wait() // it was killed: its status says nothing
	})
	deadline := time.Now().Add(30 * time.Second)
	for {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return "http://" + address
		}
		if time.Now().After(deadline) {
			p.Fatalf("the echo does not listen: %v\n%s", err, &stderr)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// targets makes request targets near the catalogue's: whole, joined, and with
// bytes changed to those that proxies and servers read differently.
func targets(r *rand.Rand) func() string {
	var known []string
	for _, op := range vllm.All() {
		known = append(known, sample(op.Path))
	}
	odd := []string{"%2F", "%2e", "%00", "%25", "//", "/./", "/../", ";", "\\", "?", "#", "%", " ", "\t", "\x7f", "\xc3\xa9", "&", "=", "+", "@", ":", "~", "*", "'", "(", ",", "$", "!", "|", "^", "\"", "<", "{", "[", "_", "-", "."}
	return func() string {
		t := known[r.IntN(len(known))]
		for range r.IntN(4) {
			at := r.IntN(len(t) + 1)
			switch r.IntN(4) {
			case 0:
				t = t[:at] + odd[r.IntN(len(odd))] + t[at:]
			case 1:
				t = t[:at] + string(rune(33+r.IntN(94))) + t[at:]
			case 2:
				t += known[r.IntN(len(known))]
			case 3:
				t = t[:at]
			}
		}
		return t
	}
}

func seeded(p *report.Proof) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	p.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// pathsReadAlike sends every target that urlpath accepts as it stands and
// wants the ASGI path, which vLLM's routes are matched against, to be the very
// bytes that the gateway matched.
func pathsReadAlike(p *report.Proof, _ *stand) {
	base := startEcho(p)
	client := &http.Client{}
	next := targets(seeded(p))
	accepted := 0
	for range readerTargets {
		target := next()
		path, err := urlpath.Parse(target)
		if err != nil {
			continue
		}
		if op, _, found := vllm.Lookup("GET", path.String()); found && op.Ours {
			continue // answered by the gateway, never forwarded: may hold %2F
		}
		accepted++
		var seen struct {
			Path string
			Raw  string `json:"raw_path"`
		}
		u, err := url.Parse(base)
		if err != nil {
			p.Fatal(err)
		}
		u.Opaque = path.String()
		resp, err := client.Do(&http.Request{Method: "GET", URL: u, Header: http.Header{}})
		if err != nil {
			p.Fatalf("%q: %v", target, err)
		}
		err = json.NewDecoder(resp.Body).Decode(&seen)
		resp.Body.Close()
		if err != nil || seen.Path != path.String() || seen.Raw != path.String() {
			p.Fatalf("%q was accepted as %q; uvicorn reads %q (raw %q), status %s, %v", target, path, seen.Path, seen.Raw, resp.Status, err)
		}
	}
	p.Logf("%d of %d targets accepted, all read alike", accepted, readerTargets)
	if accepted < readerTargets/50 {
		p.Errorf("only %d targets were accepted: too few to show anything", accepted)
	}
}

// formPart is a part as Starlette gives it to vLLM.
type formPart struct {
	Name    string
	Value   string
	File    *string
	Type    string
	SHA256  string
	Headers []string // of a file's part
}

// formsReadAlike makes forms, some of them malformed in the ways in which
// parsers disagree, and sends what inspect rebuilds of those it accepts to
// Starlette: the same names, once each, and the very bytes of the file.
func formsReadAlike(p *report.Proof, _ *stand) {
	base := startEcho(p)
	op, found := vllm.ByID("audio.transcriptions")
	fields, known := vllm.FieldsOf("audio.transcriptions")
	if !found || !known {
		p.Fatal("the catalogue has no audio.transcriptions")
	}
	r := seeded(p)
	accepted := 0
	for range readerForms {
		file, contentType, body := randomForm(r)
		d, v := inspect.Read(inspect.Request{
			Operation: op, Table: fields, ContentType: []string{contentType}, Length: int64(len(body)), Body: bytes.NewReader(body), SpoolDir: p.TempDir(),
		}, inspect.Default())
		if v.Refused() {
			continue
		}
		accepted++
		rebuilt, err := d.Rewrite([]policy.Edit{{Name: "model", Pointer: "/model", Value: `"granted"`}})
		if err != nil {
			p.Fatal(err)
		}
		whole, err := io.ReadAll(rebuilt.Reader)
		if err != nil {
			p.Fatal(err)
		}
		d.Close()
		checkForm(p, base, rebuilt.ContentType, whole, file, body)
	}
	p.Logf("%d of %d forms accepted, all read alike", accepted, readerForms)
	if accepted < readerForms/20 {
		p.Errorf("only %d forms were accepted: too few to show anything", accepted)
	}
}

func checkForm(p *report.Proof, base, contentType string, rebuilt, file, original []byte) {
	p.Helper()
	resp, err := http.Post(base+"/v1/audio/transcriptions", contentType, bytes.NewReader(rebuilt))
	if err != nil {
		p.Fatal(err)
	}
	defer resp.Body.Close()
	var got struct {
		Parts []formPart
		Error string
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got.Error != "" {
		p.Fatalf("Starlette cannot read what was rebuilt: %v %s\n%q\nof\n%q", err, got.Error, rebuilt, original)
	}
	seen := map[string]bool{}
	sum := sha256.Sum256(file)
	for _, part := range got.Parts {
		if seen[part.Name] && !strings.HasSuffix(part.Name, "[]") {
			p.Fatalf("Starlette reads %q twice\n%q\nof\n%q", part.Name, rebuilt, original)
		}
		seen[part.Name] = true
		if part.Name == "model" && part.Value != "granted" {
			p.Fatalf("Starlette reads the model %q\n%q\nof\n%q", part.Value, rebuilt, original)
		}
		if part.File == nil {
			continue
		}
		if part.Name != "file" || part.SHA256 != hex.EncodeToString(sum[:]) {
			p.Fatalf("Starlette reads another file, named %q in %q\n%q\nof\n%q", *part.File, part.Name, rebuilt, original)
		}
	}
	if !seen["file"] || !seen["model"] {
		p.Fatalf("Starlette misses the file or the model: %v\n%q\nof\n%q", seen, rebuilt, original)
	}
}

// randomForm is a form around a file, with harmless and harmful oddities.
func randomForm(r *rand.Rand) (file []byte, contentType string, body []byte) {
	file = make([]byte, r.IntN(300))
	for i := range file {
		file[i] = byte(r.IntN(256))
	}
	if r.IntN(4) == 0 { // what looks like a delimiter inside the file
		file = append(file, "\r\n--other\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nevil"...)
	}
	boundary := []string{"b", "----WebKitFormBoundary7MA4YWxkTrZu0gW", "a'b", "x_1.2"}[r.IntN(4)]
	disposition := func(name string) string {
		quoted := fmt.Sprintf("%q", name)
		return []string{
			"Content-Disposition: form-data; name=" + quoted, "content-disposition: form-data; name=" + quoted,
			"Content-Disposition: form-data; name=" + name, "Content-Disposition:form-data;name=" + quoted,
			"Content-Disposition: form-data; name=" + quoted + "; name=\"model\"", "Content-Disposition: form-data; name*=utf-8''" + name,
		}[max(0, r.IntN(60)-54)]
	}
	var b bytes.Buffer
	part := func(header, value string) { fmt.Fprintf(&b, "--%s\r\n%s\r\n\r\n%s\r\n", boundary, header, value) }
	if r.IntN(10) == 0 {
		b.WriteString("preamble\r\n")
	}
	part(disposition("model"), "tiny")
	for _, f := range [][2]string{{"language", "de"}, {"prompt", "größe \"x\"\r\n--y"}, {"temperature", "0"}, {"response_format", "json"}, {"unknown", "x"}, {"timestamp_granularities[]", "segment"}} {
		if r.IntN(3) == 0 {
			part(disposition(f[0]), f[1])
		}
	}
	if r.IntN(12) == 0 {
		part(disposition("model"), "evil")
	}
	name := []string{"a.wav", "größe.wav", "a\\\".wav", "../../etc/passwd", ""}[max(0, r.IntN(16)-11)]
	header := disposition("file") + "; filename=\"" + name + "\"\r\nContent-Type: audio/wav"
	if r.IntN(12) == 0 {
		header += "\r\nContent-Transfer-Encoding: base64"
	}
	part(header, string(file))
	fmt.Fprintf(&b, "--%s--\r\n", boundary)
	if r.IntN(10) == 0 {
		b.WriteString("epilogue")
	}
	return file, "multipart/form-data; boundary=" + boundary, b.Bytes()
}
