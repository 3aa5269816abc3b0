package gatetest

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/store"
	"github.com/vallum/vallum/internal/vllmtest"
)

const upstreamKey = "the-key-that-only-vallum-knows"

// head is all that may arrive of a request's head, byte by byte.
func head(g *Gate, path, accept string, length int) *regexp.Regexp {
	host := strings.TrimPrefix(g.Fake.URL(), "http://")
	return regexp.MustCompile("^" + regexp.QuoteMeta("POST "+path+" HTTP/1.1\r\nHost: "+host+"\r\nUser-Agent: vallum\r\nAccept-Encoding: identity\r\nAuthorization: Bearer "+
		upstreamKey+"\r\nAccept: "+accept+"\r\nX-Request-Id: ") + "req_[a-z2-7]{24}" + regexp.QuoteMeta(fmt.Sprintf("\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n", length)) + "$")
}

var saltEdit = regexp.MustCompile(`"cache_salt":"[A-Za-z0-9_-]{43}",`)

// unsalted takes the one thing out of a body that went up which the caller did not write.
func unsalted(body []byte) string { return saltEdit.ReplaceAllString(string(body), "") }

// smuggled are headers that steer vLLM, uvicorn or a proxy between, that say something of the framing, or that carry
// secrets (api.md §4, http.md §1). No request is refused for them; none arrives.
var smuggled = map[string]string{
	"plain":                   "",
	"another host":            "Host: evil\r\n",
	"forwarded":               "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\n",
	"a request id":            "X-Request-Id: ___prefill_addr_10.0.0.9:21001___decode_addr_10.0.0.9:21002_x\r\n",
	"a data-parallel rank":    "X-data-parallel-rank: 0\r\n",
	"a priority":              "X-Vllm-Priority: -100\r\n",
	"a session":               "X-Session-ID: theirs\r\nSession-Id: theirs\r\n",
	"load metrics":            "endpoint-load-metrics-format: TEXT\r\n",
	"tracing":                 "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\nb3: 0\r\n",
	"sagemaker":               "X-Amzn-SageMaker-Adapter-Identifier: other\r\nX-Amzn-SageMaker-Session-Id: x\r\n",
	"an override of methods":  "X-HTTP-Method-Override: DELETE\r\nX-Original-URL: /pause\r\nX-Rewrite-URL: /pause\r\n",
	"cookies":                 "Cookie: a=b\r\nCookie2: c\r\n",
	"origin":                  "Origin: http://evil\r\nReferer: http://evil/\r\n",
	"h2c":                     "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n", // every Java client; vLLM then reads an empty body
	"a websocket":             "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
	"hop by hop":              "Connection: close, X-Vllm-Priority, Authorization\r\nKeep-Alive: timeout=1000\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nTrailer: X-Late\r\n",
	"proxy credentials":       "Proxy-Authorization: Basic abc\r\n",
	"an unknown one":          "X-Whatever: 1\r\nX-Stainless-Lang: python\r\n",
	"underscores":             "X_Request_Id: a\r\nContent_Length: 0\r\nTransfer_Encoding: chunked\r\n",
	"compression":             "Accept-Encoding: gzip, br, zstd\r\n",
	"expect":                  "Expect: 100-continue\r\n",
	"a second key, the same":  "x-api-key: %KEY%\r\napi-key: %KEY%\r\n",
	"ranges and conditions":   "Range: bytes=0-1\r\nIf-None-Match: \"a\"\r\n",
	"a name of vallum's":      "X-Vallum-Upstream: fake\r\nX-Vallum-Reason: x\r\n",
	"early data, alt service": "Early-Data: 1\r\nAlt-Used: evil\r\n",
}

func TestOnlyOurOwnHeadersArrive(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Fake: vllmtest.Options{Key: upstreamKey}})
	for name, lines := range smuggled {
		lines = strings.ReplaceAll(lines, "%KEY%", g.Secret("app"))
		if !strings.HasPrefix(lines, "Host: ") {
			lines = "Host: gate\r\n" + lines
		}
		answers := g.Raw(fmt.Sprintf("POST /v1/chat/completions?x=%%2F..&key=a#f HTTP/1.1\r\n%sAuthorization: Bearer %s\r\nContent-Type: application/json; charset=UTF-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
			lines, g.Secret("app"), len(ChatBody), ChatBody))
		got := g.Fake.Last()
		if len(answers) == 0 || answers[len(answers)-1].Status != 200 {
			t.Errorf("%s: %+v", name, answers)
			continue
		}
		if expect := head(g, "/v1/chat/completions", "application/json", len(got.RawBody)); !expect.Match(got.Head) {
			t.Errorf("%s: there arrived\n%q\nwant\n%s", name, got.Head, expect)
		}
		if unsalted(got.RawBody) != ChatBody || !got.Whole {
			t.Errorf("%s: the body that arrived is %q", name, got.RawBody)
		}
		if !saltEdit.Match(got.RawBody) {
			t.Errorf("%s: without a salt", name)
		}
	}
}

// Two readings of one header are none: wrong then right, right then wrong, two keys in two headers.
func TestTwoCredentialsThatDifferAreRefused(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Keys: []store.NewKey{{Name: "app", Roles: []string{"inference"}}, {Name: "other", Roles: []string{"inference"}}}})
	right, other := g.Secret("app"), g.Secret("other")
	for name, lines := range map[string]string{
		"wrong then right":     "Authorization: Bearer wrong\r\nAuthorization: Bearer " + right + "\r\n",
		"right then wrong":     "Authorization: Bearer " + right + "\r\nAuthorization: Bearer wrong\r\n",
		"right twice":          "Authorization: Bearer " + right + "\r\nAuthorization: Bearer " + right + "\r\n",
		"right, other kind":    "Authorization: Bearer " + right + "\r\nx-api-key: " + other + "\r\n",
		"wrong, right apart":   "Authorization: Bearer wrong\r\napi-key: " + right + "\r\n",
		"a list":               "Authorization: Bearer wrong, Bearer " + right + "\r\n",
		"in the query":         "",
		"another scheme":       "Authorization: Basic " + right + "\r\n",
		"an underscore":        "Author_ization: Bearer " + right + "\r\n",
		"as the user of basic": "Proxy-Authorization: Bearer " + right + "\r\n",
	} {
		for _, a := range g.Raw("POST /v1/chat/completions?api_key=" + right + " HTTP/1.1\r\nHost: h\r\n" + lines + "Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}") {
			if a.Status != 401 && a.Reason() != "bad_headers" && a.Reason() != "too_many_failures" {
				t.Errorf("%s: %d %s %s", name, a.Status, a.Reason(), a.Body)
			}
		}
	}
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
}

// A body reaches vLLM as the caller's bytes with named splices, or not at all.
func TestBodiesArriveWithNamedSplicesOnly(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Fake: vllmtest.Options{Key: upstreamKey}})
	const m = `"messages":[{"role":"user","content":"h\u0069  \u00e9"}]`
	for _, row := range []struct{ path, body, arrives, dropped string }{
		{"/v1/chat/completions", `{ "seed" : 9223372036854775807 ,"model":"tiny",` + m + `, "temperature":0.70 }`, `{ "seed" : 9223372036854775807 ,"model":"tiny",` + m + `, "temperature":0.70 }`, ""},
		{"/v1/chat/completions", `{` + m + `}`, `{"model":"tiny",` + m + `}`, ""},
		{"/v1/chat/completions", `{"model":"",` + m + `}`, `{"model":"tiny",` + m + `}`, ""},
		{"/v1/chat/completions", `{"model":"tiny",` + m + `,"extra_body":{"chat_template":"{{ 1 }}"}}`, `{"model":"tiny",` + m + `}`, "/extra_body"},
		{"/v1/chat/completions", `{"model":"tiny",` + m + `,"cache_salt":"the victim's"}`, `{"model":"tiny",` + m + `,"cache_salt":"SALT"}`, ""},
		{"/v1/chat/completions", `{"model":"tiny",` + m + `,"cache_salt":null}`, `{"model":"tiny",` + m + `,"cache_salt":"SALT"}`, ""},
		{"/v1/chat/completions", `{"model":"tiny",` + m + `,"store":true,"metadata":{"a":"b"}}`, `{"model":"tiny",` + m + `}`, "/store, /metadata"},
		{"/v1/chat/completions", `{"model":"tiny",` + m + `,"Model":"other","MAX_TOKENS":1e9,"zz\u0000":1}`, `{"model":"tiny",` + m + `}`, "?"},
		{"/v1/chat/completions", `{"model":"tiny",` + m + `,"max_tokens":5.0,"stream":null}`, `{"model":"tiny",` + m + `,"max_tokens":5}`, ""},
		{"/v1/responses", `{"model":"tiny","input":"hi","store":true}`, `{"model":"tiny","input":"hi","store":false}`, ""},
		{"/v1/responses", `{"model":"tiny","input":"hi"}`, `{"store":false,"model":"tiny","input":"hi"}`, ""},
	} {
		a := g.Do(Request{Path: row.path, Key: g.Secret("app"), Body: row.body})
		got := g.Fake.Last()
		if a.Status != 200 {
			t.Errorf("%s: %d %s", row.body, a.Status, a.Body)
			continue
		}
		arrived := regexp.MustCompile(`("cache_salt":)"[A-Za-z0-9_-]{43}"`).ReplaceAllString(string(got.RawBody), `$1"SALT"`)
		if arrived != row.arrives && unsalted(got.RawBody) != row.arrives {
			t.Errorf("%s\n  arrived as %s\n  want       %s", row.body, got.RawBody, row.arrives)
		}
		if d := a.Header.Get("X-Vallum-Dropped"); row.dropped != "?" && d != row.dropped {
			t.Errorf("%s: dropped %q, want %q", row.body, d, row.dropped)
		}
		if !strings.Contains(string(got.Head), fmt.Sprintf("Content-Length: %d\r\n", len(got.RawBody))) {
			t.Errorf("%s: the length does not fit: %q", row.body, got.Head)
		}
	}
}

// refusedBodies are bodies by which a caller would get what no role gives, each with the reason and where.
var refusedBodies = []struct{ path, body, reason, param string }{
	{"/v1/chat/completions", `{"model":"other","messages":[]}`, "not_permitted", "/model"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"model":"other"}`, "bad_body", "/model"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"mod\u0065l":"other"}`, "bad_body", "/model"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"max_tokens":1,"\u006dax_tokens":100000}`, "bad_body", "/max_tokens"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"cache_salt":"a","cache_s\u0061lt":"b"}`, "bad_body", "/cache_salt"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":"a","content":"b"}]}`, "bad_body", "/messages/0/content"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"stream":"yes"}`, "bad_body", "/stream"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"stream":1}`, "bad_body", "/stream"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"max_tokens":"3"}`, "bad_body", "/max_tokens"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"n":10000}`, "bad_body", "/n"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"chat_template":"{% for a in range(9**9) %}x{% endfor %}"}`, "forbidden_parameter", "/chat_template"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"chat_template_kwargs":{"chat_template":"x"}}`, "forbidden_parameter", "/chat_template_kwargs/chat_template"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"kv_transfer_params":{"remote_host":"10.0.0.9"}}`, "forbidden_parameter", "/kv_transfer_params"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"vllm_xargs":{"kv_transfer_params":"{}"}}`, "forbidden_parameter", "/vllm_xargs"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"request_id":"theirs"}`, "forbidden_parameter", "/request_id"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"priority":-1}`, "forbidden_parameter", "/priority"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"structured_outputs":{"regex":"(a+)+$"}}`, "forbidden_parameter", "/structured_outputs/regex"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"prompt_logprobs":1}`, "forbidden_parameter", "/prompt_logprobs"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"return_token_ids":true}`, "forbidden_parameter", "/return_token_ids"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[],"mm_processor_kwargs":{"a":1}}`, "forbidden_parameter", "/mm_processor_kwargs"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://169.254.169.254/latest"}}]}]}`, "forbidden_parameter", "/messages/0/content/0/image_url/url"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"FILE:///etc/passwd"}}]}]}`, "forbidden_parameter", "/messages/0/content/0/image_url/url"},
	{"/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":null,"uuid":"theirs"}]}]}`, "forbidden_parameter", "/messages/0/content/0/uuid"},
	{"/v1/completions", `{"model":"tiny","prompt_embeds":"AAAA"}`, "forbidden_parameter", "/prompt_embeds"},
	{"/v1/responses", `{"model":"tiny","input":"a","previous_response_id":"resp_theirs"}`, "forbidden_parameter", "/previous_response_id"},
	{"/v1/responses", `{"model":"tiny","input":"a","background":true}`, "forbidden_parameter", "/background"},
	{"/v1/responses", `{"model":"tiny","input":"a","tools":[{"type":"mcp","server_url":"http://10.0.0.9"}]}`, "forbidden_parameter", "/tools/0"},
	{"/v1/messages", `{"model":"tiny","max_tokens":5,"messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"http://127.0.0.1/"}}]}]}`, "forbidden_parameter", ""},
	{"/v1/messages", `{"model":"tiny","max_tokens":5,"messages":[],"thread":{"id":"t"}}`, "thread_unsupported", ""},
	{"/v1/embeddings", `{"model":"tiny","input":"a","priority":5}`, "forbidden_parameter", "/priority"},
}

func TestBodiesThatAskForWhatNobodyGetsAreRefused(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	for _, row := range refusedBodies {
		a := g.Do(Request{Path: row.path, Key: g.Secret("app"), Body: row.body})
		if a.Reason() != row.reason || a.Status < 400 || a.Status > 403 {
			t.Errorf("%s\n  %d %s, want %s", row.body, a.Status, a.Body, row.reason)
		}
		if !strings.Contains(a.Body, fmt.Sprintf(`"param":"%s`, row.param)) && !strings.Contains(row.path, "messages") {
			t.Errorf("%s\n  does not say where (%s): %s", row.body, row.param, a.Body)
		}
		if r := g.Record(a.ID()); r.Reason != row.reason || r.Principal != "app" {
			t.Errorf("%s: the record is %+v", row.body, r)
		}
	}
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d requests arrived: %q", n, g.Fake.Last().Body)
	}
}

// A body that vLLM would not decode cannot be inspected either.
func TestEncodedBodiesAreRefused(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	for header, values := range map[string][]string{
		"Content-Encoding": {"gzip", "br", "deflate", "zstd", "gzip, identity", "x"},
		"Content-Type":     {"text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/vnd.api+json", "application/jsonp", "application/json; charset=utf-16", "application/json, text/plain", ""},
	} {
		for _, value := range values {
			r := g.Chat("app")
			r.Header = map[string]string{header: value}
			if a := g.Do(r); a.Reason() != "bad_body" {
				t.Errorf("%s: %q: %d %s", header, value, a.Status, a.Body)
			}
		}
	}
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
}
