//go:build conformance

package conformance

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vallum/vallum/conformance/report"
)

// readersGate starts a gateway whose upstream is the echo: what arrives there
// is what vLLM's own HTTP stack would have given to vLLM.
func readersGate(p *report.Proof, base string) *gate {
	p.Helper()
	dir, err := os.MkdirTemp(fleet.dir, "readers-")
	if err != nil {
		p.Fatal(err)
	}
	g, err := fleet.gateFor(dir, func(etc string) (string, error) {
		path := filepath.Join(etc, "vallum.yaml")
		return path, os.WriteFile(path, fmt.Appendf(nil, "version: 1\nprobes: 127.0.0.1:0\nupstreams: [{name: echo, url: %q, models: [tiny-speech]}]\n", base), 0o600)
	})
	if err != nil {
		p.NotRun("%v", err)
	}
	p.Cleanup(g.Stop)
	return g
}

// arrivedForm is the last form that Starlette read.
type arrivedForm struct {
	Parts   []formPart
	Headers []string
	Error   string
	raw     string
}

func (f arrivedForm) part(name string) (formPart, bool) {
	i := slices.IndexFunc(f.Parts, func(p formPart) bool { return p.Name == name })
	if i < 0 {
		return formPart{}, false
	}
	return f.Parts[i], true
}

func lastForm(p *report.Proof, base string) arrivedForm {
	p.Helper()
	got := target{base: base, client: &http.Client{}}.do(p, get("/received"))
	f := arrivedForm{raw: string(got.body)}
	if err := json.Unmarshal(got.body, &f); err != nil {
		p.Fatalf("%v: %s", err, got)
	}
	return f
}

// headersStayBehind: what stands beside a value in a form — a file's name, its
// type, headers of the part, the boundary — is not read by any check, so none
// of it goes up. Nor does a field or a file that no table names.
func headersStayBehind(p *report.Proof, _ *stand) {
	base := startEcho(p)
	word := "canary" + randomHex()
	names := []string{word + ".wav", "../../" + word, word + "\r\n X-Note: folded", "größe-" + word, word + `\".wav`, word + strings.Repeat("x", 300)}
	g := readersGate(p, base)
	direct := target{base: base, client: &http.Client{}}
	wanted := sha256.Sum256([]byte(tone(440)))
	shown := 0
	for _, name := range names {
		head := fmt.Sprintf("Content-Disposition: form-data; name=\"file\"; filename=\"%s\"\r\nContent-Type: audio/%s\r\nX-Note: %s", name, word, word)
		c := form(transcriptions, part{head, tone(440)}, text("model", "tiny-speech"), text("language", "de"),
			text("new_feature", word), part{strings.Replace(head, `"file"`, `"second_file"`, 1), word})
		c.body = strings.ReplaceAll(c.body, "--b", "--"+word)
		c.header = map[string]string{"Content-Type": "multipart/form-data; boundary=" + word, "X-Note": word, "User-Agent": word}
		direct.do(p, c)
		if before, found := lastForm(p, base).part("file"); found && before.File != nil && strings.Contains(fmt.Sprint(*before.File, before.Headers), word) {
			shown++
		}
		direct.do(p, form(transcriptions, text("model", "none"))) // so that what is left is not taken for what arrives
		got := g.as("anna").do(p, c)
		arrived := lastForm(p, base)
		if refused("bad_body")(got) == nil {
			if model, _ := arrived.part("model"); model.Value != "none" {
				p.Errorf("file name %q: refused, and yet it arrived: %s", name, arrived.raw)
			}
			continue
		}
		if got.status != http.StatusOK {
			p.Errorf("file name %q: %s", name, got)
			continue
		}
		if strings.Contains(arrived.raw, word) || arrived.Error != "" {
			p.Errorf("file name %q: what stood beside the values arrived: %s", name, arrived.raw)
		}
		file, found := arrived.part("file")
		language, _ := arrived.part("language")
		if !found || file.File == nil || file.SHA256 != hex.EncodeToString(wanted[:]) || language.Value != "de" || len(arrived.Parts) != 3 {
			p.Errorf("file name %q: the values did not arrive: %s", name, arrived.raw)
		}
		for _, header := range file.Headers {
			if key, _, _ := strings.Cut(header, ":"); key != "content-disposition" && key != "content-type" {
				p.Errorf("file name %q: a header of a part arrived: %q", name, header)
			}
		}
	}
	if shown < 3 {
		p.Fatalf("directly, Starlette gave %d of %d names to the handler: nothing is shown", shown, len(names))
	}
}

// oddFormsNeverArrive sends the forms with which the attacks on a real Whisper
// work, and looks at what Starlette gets.
func oddFormsNeverArrive(p *report.Proof, _ *stand) {
	base := startEcho(p)
	g := readersGate(p, base)
	direct := target{base: base, client: &http.Client{}}
	for _, a := range oddForms() {
		if got := direct.do(p, a.request); got.status != http.StatusOK || lastForm(p, base).Error != "" {
			p.Fatalf("%s: Starlette alone does not read it: %s", a.name, got)
		}
		direct.do(p, form(transcriptions, text("model", "none")))
		if err := refused("bad_body")(g.as("anna").do(p, a.request)); err != nil {
			p.Errorf("%s: %v", a.name, err)
		}
		if arrived := lastForm(p, base); len(arrived.Parts) != 1 || arrived.Parts[0].Value != "none" {
			p.Errorf("%s: it arrived: %s", a.name, arrived.raw)
		}
	}
}
