//go:build conformance

package conformance

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/conformance/report"
)

// upstreamKeyIsNeverSeen searches everything that a client got and that the
// gateway wrote for vLLM's own key, and for the secrets of our keys.
var upstreamKeyIsNeverSeen = proof{"vLLM's own key is never seen: logs, records, state, answers", func(p *report.Proof, s *stand) {
	if s.vllm.Key == "" {
		p.Fatal("this vLLM has no key, so there is nothing to look for")
	}
	if got := s.holder().do(p, get("/v1/models")); got.status != 200 {
		p.Fatalf("the canary is not vLLM's key: %s", got)
	}
	s.needGate(p)
	for _, c := range []call{get("/v1/models"), get("/health"), get("/nowhere"), post("/v1/chat/completions", chat("model", "nope")), post("/v1/chat/completions", "{")} {
		for _, who := range []string{"", "anna", "olga"} {
			got := s.as(who).do(p, c)
			for name, values := range got.header {
				for _, v := range values {
					searchFor(p, s, "header "+name+" of "+c.path, []byte(v))
				}
			}
			searchFor(p, s, "answer to "+c.path, got.body)
		}
	}
	said, err := s.gate.Said()
	if err != nil {
		p.Fatal(err)
	}
	searchFor(p, s, "what the gateway printed", said)
	searchState(p, s)
}}

// searchState reads every file of the state directory.
func searchState(p *report.Proof, s *stand) {
	p.Helper()
	files := 0
	err := filepath.WalkDir(s.gate.State, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		searchFor(p, s, path, b)
		return nil
	})
	if err != nil {
		p.Fatal(err)
	}
	if files == 0 {
		p.Fatalf("no file in the state directory %q: nothing was searched", s.gate.State)
	}
}

// searchFor looks for vLLM's key and for the secret halves of ours.
func searchFor(p *report.Proof, s *stand, where string, text []byte) {
	p.Helper()
	if bytes.Contains(text, []byte(s.vllm.Key)) {
		p.Errorf("vLLM's key stands in %s", where)
	}
	for name, key := range s.gate.keys {
		secret := key[bytes.LastIndexByte([]byte(key), '_')+1:]
		if len(secret) >= 20 && bytes.Contains(text, []byte(secret)) {
			p.Errorf("the secret of %s stands in %s", name, where)
		}
	}
}

// recordsHold shows that the records of all that the suite did hold together,
// and that they contain what was refused.
var recordsHold = proof{"the records hold, signed", func(p *report.Proof, s *stand) {
	s.needGate(p)
	out, err := realvallum.VerifyLog(p.Context(), s.gate.Binary, s.gate.State)
	if err != nil {
		p.Fatal(err)
	}
	p.Log(out)
	records, err := realvallum.Records(s.gate.State)
	if err != nil {
		p.Fatal(err)
	}
	want := map[string]bool{"not_permitted": false, "forbidden_parameter": false, "bad_body": false}
	for _, r := range records {
		if reason, _ := r["reason"].(string); reason != "" {
			want[reason] = true
		}
	}
	for reason, found := range want {
		if !found {
			p.Errorf("no record has the reason %q in %d records", reason, len(records))
		}
	}
}}
