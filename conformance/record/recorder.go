package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// recording is one request as a file of the corpus.
type recording struct {
	Client  string            `json:"client"`
	Version string            `json:"version"`
	Case    string            `json:"case"`
	Method  string            `json:"method"`
	Path    string            `json:"path"` // the request target, with its query
	Headers map[string]string `json:"headers"`
	// Shortened says that long texts of the client's own prompts were cut: the
	// body's structure, keys and types are the client's, its length is not.
	Shortened bool   `json:"shortened,omitempty"`
	Body      string `json:"body"`
	// Base64 is the body where it is not UTF-8 text (forms with audio).
	Base64 []byte `json:"body_base64,omitempty"`
}

// recorder is a server that keeps every request and answers it.
//
// A client's base URL is http://…/CLIENT/VERSION/CASE, so that each request
// says whose it is; the prefix is not part of what is kept.
type recorder struct {
	url    string
	server *http.Server
	mu     sync.Mutex
	kept   []recording
}

func startRecorder() (*recorder, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &recorder{url: "http://" + l.Addr().String()}
	r.server = &http.Server{Handler: r}
	go r.server.Serve(l)
	return r, nil
}

func (r *recorder) close() { r.server.Close() }

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.kept)
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 16<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	part := strings.SplitN(strings.TrimPrefix(req.RequestURI, "/"), "/", 4)
	if len(part) < 4 {
		http.NotFound(w, req)
		return
	}
	target := "/" + part[3]
	r.mu.Lock()
	r.kept = append(r.kept, recording{
		Client: part[0], Version: part[1], Case: part[2], Method: req.Method, Path: target,
		Headers: headers(req), Body: string(body),
	})
	r.mu.Unlock()
	path, _, _ := strings.Cut(target, "?")
	reply(w, req.Method, path, body)
}

// personal are headers that say something of the run or the machine only.
var personal = regexp.MustCompile(`^(host|content-length|date|x-stainless-(runtime-version|os|arch)|user-agent)$|session|thread-id|turn|request-id|idempotency`)

// headers is what matters of a request's headers: names in lower case,
// credentials replaced by KEY.
func headers(req *http.Request) map[string]string {
	out := map[string]string{}
	for name, values := range req.Header {
		name = strings.ToLower(name)
		switch {
		case personal.MatchString(name):
			continue
		case name == "authorization":
			scheme, _, _ := strings.Cut(values[0], " ")
			out[name] = scheme + " KEY"
		case name == "x-api-key" || name == "api-key":
			out[name] = "KEY"
		default:
			out[name] = strings.Join(values, ", ")
		}
	}
	if len(req.TransferEncoding) > 0 {
		out["transfer-encoding"] = strings.Join(req.TransferEncoding, ", ")
	}
	return out
}

// operations names what is in file names, by path.
var operations = map[string]string{
	"/v1/chat/completions":       "chat.create",
	"/v1/completions":            "completions.create",
	"/v1/responses":              "responses.create",
	"/v1/messages":               "messages.create",
	"/v1/messages/count_tokens":  "messages.count_tokens",
	"/v1/embeddings":             "embeddings.create",
	"/v1/models":                 "models.list",
	"/v1/rerank":                 "rerank.v1",
	"/rerank":                    "rerank.root",
	"/v1/audio/transcriptions":   "audio.transcriptions",
	"/v1/audio/translations":     "audio.translations",
	"/tokenize":                  "tokenize.create",
	"/detokenize":                "detokenize.create",
	"/health":                    "health.read",
	"/metrics":                   "metrics.read",
	"/v1/score":                  "score.create",
	"/score":                     "score.root",
	"/v1/chat/completions/batch": "chat.batch",
}

// operation names a recording's operation: the catalogue's id where there is
// one, "other" for what clients send besides.
func (r recording) operation() string {
	path, _, _ := strings.Cut(r.Path, "?")
	if op := operations[path]; op != "" {
		return op
	}
	if strings.HasPrefix(path, "/v1/models/") {
		return "models.retrieve"
	}
	return "other"
}

// write keeps one file per distinct request of a case. Whole removes the files
// that were there: a client that sends nothing any more leaves none behind.
func (r *recorder) write(dir string, whole bool) (int, error) {
	if whole {
		old, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil {
			return 0, err
		}
		for _, file := range old {
			if err := os.Remove(file); err != nil {
				return 0, err
			}
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	used := map[string][]string{}
	n := 0
	for _, rec := range r.kept {
		rec = scrub(rec)
		stem := strings.Join([]string{rec.Client, rec.Version, rec.operation(), rec.Case}, "-")
		same := rec.Method + rec.Path + rec.Body
		if slices.Contains(used[stem], same) {
			continue
		}
		used[stem] = append(used[stem], same)
		if len(used[stem]) > 1 {
			stem += fmt.Sprintf("-%d", len(used[stem]))
		}
		if !utf8.ValidString(rec.Body) {
			rec.Body, rec.Base64 = "", []byte(rec.Body)
		}
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(rec); err != nil {
			return n, err
		}
		if err := os.WriteFile(filepath.Join(dir, stem+".json"), b.Bytes(), 0o644); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
