package gatetest

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

// part is one part of a form as a caller writes it.
type part struct{ header, content string }

// form sends parts as they stand to the transcriptions.
func (g *Gate) form(parts ...part) Answer {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "--theirs\r\n%s\r\n\r\n%s\r\n", p.header, p.content)
	}
	b.WriteString("--theirs--\r\n")
	return g.Do(Request{Path: "/v1/audio/transcriptions", Key: g.Secret("app"), Body: b.String(), Header: map[string]string{"Content-Type": "multipart/form-data; boundary=theirs"}})
}

func field(name string) string { return `Content-Disposition: form-data; name="` + name + `"` }

var audioFile = part{`Content-Disposition: form-data; name="file"; filename="../../etc/passwd.wav"` + "\r\nContent-Type: application/x-evil\r\nX-Smuggled: 1", "RIFF\x24\x00\x00\x00WAVEfmt audio"}

// A form reaches vLLM rebuilt: our boundary, field names of the catalogue, a fixed file name, no other part headers.
func TestFormsArriveRebuilt(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	a := g.form(part{field("model"), "tiny"}, audioFile, part{field("language"), "en"}, part{field("zz"), "unknown"})
	got := g.Fake.Last()
	if a.Status != 200 || a.Header.Get("X-Vallum-Dropped") != "/zz" {
		t.Fatalf("%d %v %s", a.Status, a.Header, a.Body)
	}
	media, params, err := mime.ParseMediaType(got.Header.Get("Content-Type"))
	if err != nil || media != "multipart/form-data" || params["boundary"] == "theirs" || len(params) != 1 {
		t.Fatalf("the content type that arrived is %q", got.Header.Get("Content-Type"))
	}
	seen := map[string]string{}
	for r := multipart.NewReader(bytes.NewReader(got.Body), params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err != nil {
			if err != io.EOF {
				t.Fatal(err)
			}
			break
		}
		b, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		seen[p.Header.Get("Content-Disposition")] += string(b)
		for name := range p.Header {
			if name != "Content-Disposition" && name != "Content-Type" {
				t.Errorf("a part arrived with %s", name)
			}
		}
	}
	for _, want := range []string{`form-data; name="model"`, `form-data; name="language"`} {
		if _, ok := seen[want]; !ok {
			t.Errorf("%s did not arrive: %q", want, seen)
		}
	}
	if bytes.Contains(got.Body, []byte("passwd")) || bytes.Contains(got.Body, []byte("evil")) || bytes.Contains(got.Body, []byte("unknown")) || !bytes.Contains(got.Body, []byte("RIFF\x24\x00\x00\x00WAVEfmt audio")) {
		t.Errorf("there arrived %q", got.Body)
	}
	if r := g.Record(a.ID()); r.Operation != "audio.transcriptions" || r.Model != "tiny" {
		t.Errorf("recorded as %+v", r)
	}
}

// Go's reader and Starlette's disagree on each of these.
func TestFormsWithTwoReadingsAreRefused(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	model := part{field("model"), "tiny"}
	for name, parts := range map[string][]part{
		"a field twice":                {model, part{field("model"), "other"}, audioFile},
		"a file twice":                 {model, audioFile, audioFile},
		"name*":                        {model, audioFile, {`Content-Disposition: form-data; name="language"; name*=UTF-8''model`, "other"}},
		"a transfer encoding":          {model, {field("language") + "\r\nContent-Transfer-Encoding: base64", "b3RoZXI="}, audioFile},
		"two dispositions":             {model, {field("language") + "\r\n" + field("model"), "other"}, audioFile},
		"no name":                      {model, {"Content-Disposition: form-data", "x"}, audioFile},
		"another model":                {{field("model"), "other"}, audioFile},
		"an upload where text belongs": {{field("model") + `; filename="model"`, "tiny"}, audioFile},
		"a field that is refused":      {model, audioFile, {field("vllm_xargs"), `{"a":1}`}},
	} {
		if a := g.form(parts...); a.Status < 400 || a.Status >= 500 {
			t.Errorf("%s: %d %s", name, a.Status, a.Body)
		}
	}
	for name, kind := range map[string]string{"another boundary": "multipart/form-data; boundary=other", "no boundary": "multipart/form-data", "two boundaries": "multipart/form-data; boundary=theirs; boundary=other", "JSON": "application/json"} {
		a := g.Do(Request{Path: "/v1/audio/transcriptions", Key: g.Secret("app"), Body: "--theirs\r\n" + field("model") + "\r\n\r\ntiny\r\n--theirs--\r\n", Header: map[string]string{"Content-Type": kind}})
		if a.Reason() != "bad_body" {
			t.Errorf("%s: %d %s", name, a.Status, a.Body)
		}
	}
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d arrived: %q", n, g.Fake.Last().Body)
	}
}

// A large file goes through the disk and leaves nothing there.
func TestALargeFileLeavesNoSpool(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	large := audioFile
	large.content = strings.Repeat("0123456789abcdef", 3<<16)
	a := g.form(part{field("model"), "tiny"}, large)
	if got := g.Fake.Last(); a.Status != 200 || !bytes.Contains(got.Body, []byte(large.content)) || !got.Whole {
		t.Errorf("%d %s, %d bytes arrived", a.Status, a.Body, len(got.Body))
	}
	g.NothingHeld()
	entries, err := os.ReadDir(g.State)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), "form") {
			t.Errorf("%s stays behind", e.Name())
		}
	}
	tooLarge := Start(t, Options{Config: "bodies: {max_form: 2MiB}"})
	if a := tooLarge.form(part{field("model"), "tiny"}, large); a.Status != 413 || a.Reason() != "body_too_large" || tooLarge.Fake.Arrived() != 0 {
		t.Errorf("above the cap: %d %s", a.Status, a.Body)
	}
}

// The list of models is the key's own, without what vLLM tells of its disk; what the SDKs ask for and vLLM lacks is
// answered here, under the one encoded spelling that they use.
func TestModelsAreTheKeysOwn(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Fake: vllmtest.Options{Models: []string{"org/model-a", "hidden"}}, Config: "roles:\n  team: {operations: [chat.create, models.list, models.retrieve], models: [org/model-a]}\naliases: {gpt: org/model-a}\n", Keys: []store.NewKey{{Name: "app", Roles: []string{"team"}}}})
	list := g.Do(Request{Path: "/v1/models", Key: g.Secret("app")})
	if list.Status != 200 || strings.Contains(list.Body, "hidden") || strings.Contains(list.Body, "secret-path") || !regexp.MustCompile(`"id":"gpt".*"id":"org/model-a"`).MatchString(list.Body) {
		t.Errorf("%d %s", list.Status, list.Body)
	}
	for path, status := range map[string]int{
		"/v1/models/org%2Fmodel-a": 200, "/v1/models/gpt": 200, "/v1/models/hidden": 404, "/v1/models/none": 404, "/v1/models/org%2fmodel-a": 200,
		"/v1/models/org/model-a": 200, "/v1/models/..%2Fmodels": 400, "/v1/models/org%252Fmodel-a": 400, "/v1/models/%67pt": 400, "/v1/models/gpt%00": 400,
	} {
		a := g.Do(Request{Path: path, Key: g.Secret("app")})
		if a.Status != status || strings.Contains(a.Body, "secret-path") {
			t.Errorf("%s: %d %s, want %d", path, a.Status, a.Body, status)
		}
	}
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d arrived", n)
	}
}
