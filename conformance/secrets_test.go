//go:build conformance

package conformance

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/conformance/report"
)

// secretsAreNeverSeen searches everything that anybody was told and that the
// gateway wrote, in all that the suite did so far, for vLLM's own key and for
// the secrets of the clients' keys.
var secretsAreNeverSeen = proof{"vLLM's own key and the clients' keys are never seen: answers, logs, records, state, metrics, pages", func(p *report.Proof, s *stand) {
	for _, v := range s.servers() {
		if v.Key == "" {
			p.Fatalf("vLLM %s has no key, so there is nothing to look for", v.Name)
		}
		if got := holderOf(v).do(p, get("/v1/models")); got.status != http.StatusOK {
			p.Fatalf("the canary is not vLLM's key: %s", got)
		}
	}
	s.needGate(p)
	s.misplaceKeys(p)
	places, bytesRead := 0, 0
	look := func(where string, text []byte) {
		places, bytesRead = places+1, bytesRead+len(text)
		s.searchSecrets(p, where, text)
	}
	connections, err := s.gate.eachHeard(look)
	if err != nil {
		p.Fatal(err)
	}
	s.gate.eachPlace(p, look)
	p.Logf("%d places, %d bytes searched, all that was said on %d connections among them", places, bytesRead, connections)
	if connections < 10 || bytesRead < 10_000 {
		p.Error("too little was searched to show anything")
	}
}}

// misplaceKeys sends keys, good ones and vLLM's own among them, where no key
// belongs and in requests that are refused.
func (s *stand) misplaceKeys(p *report.Proof) {
	p.Helper()
	good, own := s.gate.keys["anna"], s.vllm.Key
	header := func(c call, name, value string) call {
		c.header = map[string]string{name: value}
		return c
	}
	nobody := s.as("")
	for _, c := range []call{
		get("/v1/models?api_key=" + good), get("/" + good), get("/v1/models/" + good),
		header(get("/v1/models"), "Authorization", "Bearer "+own), header(get("/v1/models"), "Authorization", "Basic "+good),
		header(get("/v1/models"), "Cookie", "key="+good), header(get("/v1/models"), "Authorization", "Bearer "+good[:len(good)-1]),
		header(get("/v1/models"), "X-Api-Key", own), header(get("/v1/models"), "X-Request-Id", "r"),
	} {
		nobody.do(p, c)
	}
	differ := s.as("anna")
	differ.do(p, header(get("/v1/models"), "X-Api-Key", own))
	for _, c := range []call{
		post("/v1/chat/completions", chat("model", "nope")), post("/v1/chat/completions", "{"), post("/pause", ""),
		post("/v1/chat/completions", chat("model", s.vllm.Served, "max_tokens", 100_000)),
	} {
		for _, who := range []string{"anna", "olga", "mona"} {
			s.as(who).do(p, c)
		}
	}
}

// searchSecrets looks for the servers' keys and for the secret halves of ours.
func (s *stand) searchSecrets(p *report.Proof, where string, text []byte) {
	p.Helper()
	for _, v := range s.servers() {
		if bytes.Contains(text, []byte(v.Key)) {
			p.Errorf("vLLM's key stands in %s", where)
		}
	}
	for name, key := range s.gate.keys {
		secret := key[strings.LastIndexByte(key, '_')+1:]
		if len(secret) < 20 {
			p.Fatalf("the key of %s has no secret to look for", name)
		}
		if bytes.Contains(text, []byte(secret)) {
			p.Errorf("the secret of %s stands in %s", name, where)
		}
	}
}

// eachPlace calls f with everything that the gateway wrote or shows to its
// operators: what it printed, each file of its state, its pages, what its
// commands print about it, and how its process is called.
func (g *gate) eachPlace(p *report.Proof, f func(where string, text []byte)) {
	p.Helper()
	for page, text := range g.pages(p) {
		f(page, text)
	}
	printed, err := g.Said()
	if err != nil {
		p.Fatal(err)
	}
	f("what it printed", printed)
	files := 0
	err = filepath.WalkDir(g.State, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		files++
		f(path, b)
		return err
	})
	if err != nil || files < 3 {
		p.Fatalf("%d files in the state directory %q: %v", files, g.State, err)
	}
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", g.PID(), file))
		if err != nil {
			p.Fatal(err)
		}
		f("the process's "+file, b)
	}
}

// pages is what the gateway shows to those who operate it.
func (g *gate) pages(p *report.Proof) map[string][]byte {
	p.Helper()
	out := map[string][]byte{}
	for _, page := range []string{"/livez", "/readyz", "/metrics"} {
		out[page] = g.probe(p, page)
	}
	admin := target{base: "http://admin", client: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(filepath.Dir(g.Config), "admin.sock"))
		},
	}}}
	status := admin.do(p, get("/status"))
	if err := ok("upstreams")(status); err != nil {
		p.Fatalf("the administration: %v", err)
	}
	out["/status"] = status.body
	for _, command := range [][]string{{"log", "show", "--json"}, {"log", "show"}, {"keys", "list", "--all", "--json"}, {"explain", "--record", g.aRefusal(p)}} {
		text, err := g.Run(p.Context(), command...)
		if err != nil && !strings.Contains(text, "refused: ") { // explain ends with 1 where the answer is no
			p.Fatal(err)
		}
		out["vallum "+strings.Join(command, " ")] = []byte(text)
	}
	return out
}

// aRefusal is the id of the last recorded refusal.
func (g *gate) aRefusal(p *report.Proof) string {
	p.Helper()
	records, err := realvallum.Records(g.State)
	if err != nil {
		p.Fatal(err)
	}
	for _, r := range slices.Backward(records) {
		if id, found := r["id"].(string); found && r["event"] == "refused" {
			return id
		}
	}
	p.Fatal("no record of a refusal")
	return ""
}

// probe is a page of the probes listener.
func (g *gate) probe(p *report.Proof, page string) []byte {
	p.Helper()
	url, err := g.Probes()
	if err != nil {
		p.Fatal(err)
	}
	got := target{base: url, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}.do(p, get(page))
	if len(got.body) == 0 {
		p.Fatalf("%s: %s", page, got)
	}
	return got.body
}

// promptsAreNeverSeen sends a word in every place where a caller's text may
// stand, in requests that are answered and in such as are refused, by the
// gateway and by vLLM, and looks for it everywhere but in answers to it.
var promptsAreNeverSeen = proof{"a caller's text is in no refusal, log, record, metric or page", func(p *report.Proof, s *stand) {
	word := "canary" + randomHex()
	repeated := 0
	for _, c := range requestsAbout(s.vllm.Served, word) {
		if got := s.holder().do(p, c); got.status >= 400 && bytes.Contains(got.body, []byte(word)) {
			repeated++
		}
	}
	if repeated == 0 {
		p.Fatal("vLLM alone repeated nothing of what it refused: that the gateway does not shows nothing")
	}
	s.needGate(p)
	answered, refusals := 0, 0
	for _, c := range requestsAbout(s.vllm.Served, word) {
		got := s.as("anna").do(p, c)
		if got.status == http.StatusOK {
			answered++
			continue
		}
		refusals++
		if bytes.Contains(got.body, []byte(word)) || strings.Contains(fmt.Sprint(got.header), word) {
			p.Errorf("POST %s: the refusal repeats what was sent: %s", c.path, got)
		}
	}
	p.Logf("directly, %d refusals repeated it; through Vallum %d requests were answered, %d refused", repeated, answered, refusals)
	if answered == 0 || refusals < 10 {
		p.Error("too few were answered, or refused, to show anything")
	}
	s.gate.eachPlace(p, func(where string, text []byte) {
		if bytes.Contains(text, []byte(word)) {
			p.Errorf("what a caller sent stands in %s", where)
		}
	})
}}

// requestsAbout is requests with a word in them: as text of each kind, where it
// does not belong, and in bodies that are no JSON.
func requestsAbout(model, word string) []call {
	says := []doc{{"role": "user", "content": word}}
	base := func(more ...any) doc {
		d := doc{"model": model, "max_tokens": 2, "messages": says}
		for i := 0; i+1 < len(more); i += 2 {
			d[more[i].(string)] = more[i+1]
		}
		return d
	}
	chatPath := "/v1/chat/completions"
	out := []call{
		post(chatPath, base()), post(chatPath, base("stream", true)), post(chatPath, base("user", word, "metadata", doc{"a": word}, "stop", []string{word})),
		post(chatPath, base("tools", []doc{{"type": "function", "function": doc{"name": "f", "description": word, "parameters": doc{"type": "object", "description": word}}}})),
		post(chatPath, base("messages", []doc{{"role": "system", "content": word}, {"role": "user", "content": []doc{{"type": "text", "text": word}}}})),
		post("/v1/completions", doc{"model": model, "prompt": word, "suffix": word, "max_tokens": 2}), post("/v1/completions", doc{"model": model, "prompt": word, "max_tokens": 2}),
		post("/v1/responses", doc{"model": model, "input": word, "instructions": word, "max_output_tokens": 2}),
		post("/v1/messages", base("system", word)), post("/v1/messages/count_tokens", doc{"model": model, "messages": says, "system": word}),
		post("/v1/embeddings", doc{"model": model, "input": word}), post("/pooling", doc{"model": model, "input": word}), post("/classify", doc{"model": model, "input": word}),
		post("/v1/score", doc{"model": model, "text_1": word, "text_2": word}), post("/v1/rerank", doc{"model": model, "query": word, "documents": []string{word}}),
		form(transcriptions, sound(word+".wav", 440), text("model", model), text("prompt", word)), form(transcriptions, sound("a.wav", 440), text("model", model), text("temperature", word)),
		post(chatPath, `{"model":"`+model+`","messages":[{"role":"user","content":"`+word), post(chatPath, word), post(chatPath, base("messages", word)),
		post(chatPath, base("messages", []doc{{"role": word, "content": word}})), post(chatPath, base("messages", []doc{{"role": "user", "content": 1, "name": word}})),
		post(chatPath, base("messages", []doc{{"role": "user", "content": strings.Repeat(word+" ", 300)}})), post(chatPath, base("tool_choice", doc{"type": "function", "function": doc{"name": word}})),
		post("/v1/messages", base("messages", word)), post("/v1/responses", doc{"model": model, "input": doc{"x": word}}), post("/v1/embeddings", doc{"model": model, "input": doc{"x": word}}),
		{method: "POST", path: chatPath + "?q=" + word, body: "{", header: map[string]string{"X-Note": word, "User-Agent": word, "Cookie": word}},
	}
	for _, field := range []string{"temperature", "max_tokens", "n", "stream", "chat_template", "kv_transfer_params", "vllm_xargs", "stop_token_ids", "response_format", "logit_bias", "new_feature"} {
		out = append(out, post(chatPath, base(field, word)))
	}
	for _, field := range []string{"dimensions", "encoding_format", "truncate_prompt_tokens"} {
		out = append(out, post("/v1/embeddings", doc{"model": model, "input": word, field: word}), post("/pooling", doc{"model": model, "input": word, field: word}))
	}
	return append(out, post(chatPath, base("messages", []doc{{"role": "user", "content": []doc{{"type": "image_url", "image_url": doc{"url": "http://127.0.0.1/" + word}}}}})))
}

// recordsHold shows that the records of all that the suite did hold together,
// and that they contain what was refused.
var recordsHold = proof{"the records hold, signed", func(p *report.Proof, s *stand) {
	records := s.verifiedRecords(p)
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

// recordsAreWhole is for suites that send no bad bodies.
var recordsAreWhole = proof{"the records hold, signed", func(p *report.Proof, s *stand) { s.verifiedRecords(p) }}

func (s *stand) verifiedRecords(p *report.Proof) []realvallum.Record {
	p.Helper()
	s.needGate(p)
	var out string
	until(p, recordWithin, "a signature on the last record", func() bool {
		var err error
		if out, err = realvallum.VerifyLog(p.Context(), s.gate.Binary, s.gate.State); err != nil {
			p.Fatal(err)
		}
		return !strings.Contains(out, "not yet signed")
	})
	p.Log(out)
	records, err := realvallum.Records(s.gate.State)
	if err != nil || len(records) == 0 {
		p.Fatalf("%d records, %v", len(records), err)
	}
	return records
}
