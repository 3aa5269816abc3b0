package gatetest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/vllmtest"
)

// badFraming are requests as no client writes them. bare: it is refused with a status only, for no request existed; the
// others reach the data path, which reads them in one way only and builds a request of its own.
func badFraming(key string) map[string]struct{ request, want string } {
	auth := "Authorization: Bearer " + key + "\r\nContent-Type: application/json\r\n"
	body := ChatBody
	post := "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n" + auth
	smuggle := "0\r\n\r\nPOST /pause HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
	return map[string]struct{ request, want string }{
		"no version":                {"POST /v1/chat/completions\r\n\r\n", "400"},
		"a version that is none":    {"POST /v1/chat/completions HTTP/1.x\r\nHost: h\r\n\r\n", "400"},
		"HTTP/3.0":                  {"POST /v1/chat/completions HTTP/3.0\r\nHost: h\r\n\r\n", "505"},
		"a space in the target":     {"POST /v1/chat completions HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		"a tab":                     {"POST\t/v1/chat/completions HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		"a NUL in the target":       {"POST /v1/chat\x00/completions HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		"raw UTF-8 in the target":   {"GET /v1/mod\xc3\xa9ls HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + auth + "\r\n", "400"},
		"no host":                   {"GET /v1/models HTTP/1.1\r\n" + auth + "\r\n", "400"},
		"two hosts":                 {"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n" + auth + "\r\n", "400"},
		"a host with a path":        {"GET /v1/models HTTP/1.1\r\nHost: x/health?\r\n" + auth + "\r\n", "400"}, // CVE-2026-48746
		"garbage":                   {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ""},
		"an HTTP/2 preface":         {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"},
		"a NUL in a value":          {post + "X-A: a\x00b\r\nContent-Length: 0\r\n\r\n", "400"},
		"a NUL in a name":           {post + "X\x00A: b\r\nContent-Length: 0\r\n\r\n", "400"},
		"a space before the colon":  {post + "Content-Length : 5\r\n\r\n", "400"},
		"a space in a name":         {post + "Transfer Encoding: chunked\r\n\r\n", "400"},
		"no colon":                  {post + "Content-Length\r\n\r\n", "400"},
		"a folded first header":     {"POST /v1/models HTTP/1.1\r\n Host: h\r\n\r\n", "400"},
		"a folded header":           {post + "X-A: a\r\n\tTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}", "400"},
		"a folded key":              {"GET /v1/models HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer\r\n " + key + "\r\n\r\n", "400"},
		"a folded length":           {post + "Content-Length:\r\n 2\r\n\r\n{}", "400"},
		"lines that end in LF":      {strings.ReplaceAll(post+"Content-Length: 2\r\n\r\n", "\r\n", "\n") + "{}", "400"},
		"a request behind LF LF":    {post + "Content-Length: 0\r\nX-A: a\n\nPOST /pause HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		"two lengths that differ":   {post + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", "400"},
		"a list of lengths":         {post + "Content-Length: 5, 6\r\n\r\n", "400"},
		"a negative length":         {post + "Content-Length: -1\r\n\r\n", "400"},
		"a signed length":           {post + "Content-Length: +5\r\n\r\n", "400"},
		"a length in hex":           {post + "Content-Length: 0x10\r\n\r\n", "400"},
		"a length of 30 digits":     {post + "Content-Length: 999999999999999999999999999999\r\n\r\n", "400"},
		"gzip, chunked":             {post + "Transfer-Encoding: gzip, chunked\r\n\r\n", "501"},
		"chunked twice":             {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "501"},
		"xchunked":                  {post + "Transfer-Encoding: xchunked\r\n\r\n", "501"},
		"a vertical tab":            {post + "Transfer-Encoding: \x0bchunked\r\n\r\n", "400"},
		"CL and TE":                 {post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + smuggle, "bad_body"},
		"TE and CL":                 {post + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\nConnection: close\r\n\r\n" + smuggle, "bad_body"},
		"a chunk that is no number": {post + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", "bad_body"},
		"a chunk size of a mile":    {post + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nfffffffffffffffff\r\na", "bad_body"},
		"a chunk beyond its size":   {post + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\n{}{}\r\n0\r\n\r\n", "bad_body"},
		"a body on a GET":           {"GET /v1/models HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nConnection: close\r\n" + auth + "\r\n{}", "bad_body"},
		"shorter than declared":     {fmt.Sprintf("%sContent-Length: %d\r\nConnection: close\r\n\r\n%s", post, len(body)+9, body), "body_timeout"},
		"a chunked body cut off":    {post + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\n{\"mod", "body_timeout"},
		"an upgrade on a GET":       {"GET /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n" + auth + "\r\n", "unknown_operation"},
		"realtime":                  {"GET /v1/realtime?model=tiny HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n" + auth + "\r\n", "not_permitted"},
		"expect something else":     {post + "Expect: a-unicorn\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", "417"},
	}
}

func TestBadFramingIsRefusedAndNothingArrives(t *testing.T) {
	t.Parallel()
	// What is waited for in vain is waited for at the hasty one; at the other a busy machine may take its time.
	hasty, patient := Start(t, Options{Config: "timeouts: {body: 300ms, header: 2s}"}), Start(t, Options{})
	for _, g := range []*Gate{hasty, patient} {
		bare := 0
		for name, row := range badFraming(g.Secret("app")) {
			if inVain := row.want == "body_timeout" || row.want == ""; inVain != (g == hasty) {
				continue
			}
			t.Run(name, func(t *testing.T) {
				c := g.Dial()
				if _, err := io.WriteString(c, row.request); err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(io.LimitReader(c, 64<<10)) // the server closes, or its timeout does
				resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
				if err != nil || resp.Header.Get("X-Request-Id") == "" {
					bare++
				}
				if row.want == "" {
					if err == nil && resp.StatusCode < 400 {
						t.Errorf("answered %q", b)
					}
					return
				}
				if err != nil {
					t.Fatalf("answered %q: %v", b, err)
				}
				if got := fmt.Sprint(resp.StatusCode); got != row.want && resp.Header.Get("X-Vallum-Reason") != row.want {
					t.Errorf("answered %s, want %s:\n%s", got, row.want, b)
				}
				if strings.Count(string(b), "HTTP/1.1 ") != 1 {
					t.Errorf("more than one answer: a request was smuggled:\n%s", b)
				}
			})
		}
		if n := g.Fake.Arrived(); n != 0 {
			t.Errorf("%d requests arrived: %q", n, g.Fake.Last().Head)
		}
		if n := g.Gauge("vallum_malformed_requests_total"); n != fmt.Sprint(bare) {
			t.Errorf("%s were counted as malformed, of %d", n, bare)
		}
		g.NothingHeld()
	}
}

// What is only strange, and has one reading, works; what arrives is built anew.
func TestStrangeFramingWithOneReadingWorks(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Fake: vllmtest.Options{Key: upstreamKey}})
	auth := "Authorization: Bearer " + g.Secret("app") + "\r\nContent-Type: application/json\r\n"
	length := fmt.Sprintf("Content-Length: %d\r\n", len(ChatBody))
	chunked := fmt.Sprintf("3;ext=\"a\"\r\n%s\r\n%x\r\n%s\r\n0\r\nX-Late: Bearer\r\nContent-Length: 0\r\n\r\n", ChatBody[:3], len(ChatBody)-3, ChatBody[3:])
	for name, request := range map[string]string{
		"HTTP/1.0":                "POST /v1/chat/completions HTTP/1.0\r\n" + auth + length + "\r\n" + ChatBody,
		"longer than declared":    "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + auth + length + "\r\n" + ChatBody + "POST /pause HTTP/1.1\r\nHost: h\r\n\r\n",
		"chunked with a trailer":  "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + auth + "Transfer-Encoding: chunked\r\nTrailer: X-Late\r\n\r\n" + chunked,
		"CL and TE":               "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + auth + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
		"the same length twice":   "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + auth + length + length + "\r\n" + ChatBody,
		"leading empty lines":     "\r\n\r\nPOST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + auth + length + "\r\n" + ChatBody,
		"names with underscores":  "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + auth + "Content_Length: 0\r\n" + length + "\r\n" + ChatBody,
		"a length with zeros":     "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + auth + strings.Replace(length, ": ", ": 000", 1) + "\r\n" + ChatBody,
		"two requests, pipelined": "GET /v1/models HTTP/1.1\r\nHost: h\r\n" + auth + "\r\nPOST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + auth + length + "\r\n" + ChatBody,
	} {
		before := g.Fake.Arrived()
		answers := g.Raw(request)
		got := g.Fake.Last()
		if len(answers) == 0 || answers[len(answers)-1].Status != 200 || g.Fake.Arrived() != before+1 {
			if name == "leading empty lines" && len(answers) == 1 && answers[0].Status == 400 { // RFC 9112 §2.2 wants one to be ignored; only behind a POST is it
				continue
			}
			t.Errorf("%s: %+v, %d arrived", name, answers, g.Fake.Arrived()-before)
			continue
		}
		if !head(g, "/v1/chat/completions", "application/json", len(got.RawBody)).Match(got.Head) || unsalted(got.RawBody) != ChatBody {
			t.Errorf("%s: there arrived %q %q", name, got.Head, got.RawBody)
		}
	}
}

// Header blocks that cost: none is kept, all are answered or cut.
func TestHeaderBlocksThatCostAreRefused(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Config: "timeouts: {header: 2s}"})
	start := "GET /v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer " + g.Secret("app") + "\r\n"
	for name, row := range map[string]struct {
		block  string
		status int
	}{
		"99 fields":          {strings.Repeat("X-A: b\r\n", 95), 200},
		"101 fields":         {strings.Repeat("X-A: b\r\n", 101), 431},
		"10,000 fields":      {strings.Repeat("a:\r\n", 10_000), 431},
		"50,000 fields":      {strings.Repeat("X-A: b\r\n", 50_000), 431},
		"a field of 60 KiB":  {"X-A: " + strings.Repeat("a", 60<<10) + "\r\n", 200},
		"a field of 128 KiB": {"X-A: " + strings.Repeat("a", 128<<10) + "\r\n", 431},
		"a key of 60 KiB":    {"X-Api-Key: " + strings.Repeat("a", 60<<10) + "\r\n", 401},
	} {
		answers := g.Raw(start + row.block + "\r\n")
		if len(answers) == 0 && row.status == 431 {
			continue // the connection broke before the answer was read: it was closed with bytes unread
		}
		if len(answers) != 1 || answers[0].Status != row.status {
			t.Errorf("%s: %+v, want %d", name, answers, row.status)
		}
	}
	sent := flood(t, g, start+"X-A: ", 100<<20)
	if sent > 16<<20 {
		t.Errorf("%d bytes of a header were taken", sent)
	}
	// headers that never end, byte by byte, end with their timeout
	c := g.Dial()
	if _, err := io.WriteString(c, start); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, _ = io.ReadAll(c); time.Since(began) > 15*time.Second { // g.Dial gives up after twenty
		t.Errorf("a header that does not end was waited for %s", time.Since(began))
	}
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
}

// flood sends a beginning and then as many bytes as are taken, and gives how many were.
func flood(t *testing.T, g *Gate, begin string, most int) int {
	t.Helper()
	c := g.Dial()
	sent, err := io.WriteString(c, begin)
	piece := bytes.Repeat([]byte("a"), 256<<10)
	for err == nil && sent < most {
		var n int
		n, err = c.Write(piece)
		sent += n
	}
	_ = c.Close()
	return sent
}

// Bodies that are too large, by their word or in truth, cost no memory: they are refused before they are read, or as
// soon as they pass the cap.
func TestBodiesOverTheCapAreNotBuffered(t *testing.T) { // not in parallel: it counts what the process allocates
	g := Start(t, Options{Config: "timeouts: {body: 5s}"})
	post := "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nAuthorization: Bearer " + g.Secret("app") + "\r\n"
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 3 {
		answers := Raw(t, g.Dial(), post+fmt.Sprintf("Content-Length: %d\r\n\r\n{\"model\":\"", 200<<20))
		if len(answers) != 1 || answers[0].Reason() != "body_too_large" || answers[0].Status != 413 {
			t.Fatalf("200 MiB declared: %+v", answers)
		}
		if sent := flood(t, g, post+fmt.Sprintf("Content-Length: %d\r\n\r\n{\"model\":\"", 200<<20), 200<<20); sent > 32<<20 {
			t.Errorf("%d bytes were taken of a body that was refused", sent)
		}
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 24<<20 {
		t.Errorf("refusing three bodies of 200 MiB twice allocated %d MiB", grown>>20)
	}
	// chunked: nothing is declared, so it is read up to the cap of 8 MiB
	c := g.Dial()
	go func() {
		piece := "10000\r\n" + strings.Repeat("a", 0x10000) + "\r\n"
		_, err := io.WriteString(c, post+"Transfer-Encoding: chunked\r\n\r\n6\r\n{\"a\":\"\r\n")
		for range 16 << 10 { // a body that never ends, to this server
			if err != nil {
				return
			}
			_, err = io.WriteString(c, piece)
		}
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.Header.Get("X-Vallum-Reason") != "body_too_large" {
		t.Errorf("a body without end: %v %v", resp, err)
	}
	_ = c.Close()
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
	g.NothingHeld()
}

// All bodies together stay within max_buffered: what does not fit is refused, and fits again later.
func TestBodiesOfAllRequestsAreBounded(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Config: "bodies: {max_buffered: 1MiB, max_json: 1MiB}\ntimeouts: {body: 20s}"})
	post := "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: application/json\r\nAuthorization: Bearer " + g.Secret("app") + "\r\n"
	slow := g.Dial()
	if _, err := io.WriteString(slow, post+"Content-Length: 1000000\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	g.Eventually("the memory of the slow body", func() bool { return g.Gauge("vallum_buffered_bytes") == "1e+06" })
	big := `{"model":"tiny","messages":[{"role":"user","content":"` + strings.Repeat("a", 200<<10) + `"}]}`
	answers := g.Raw(post + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(big), big))
	if len(answers) != 1 || answers[0].Reason() != "busy" || answers[0].Status != 503 || answers[0].Header.Get("Retry-After") == "" {
		t.Errorf("while memory is out: %+v", answers)
	}
	if a := g.Do(g.Chat("app")); a.Status != 200 {
		t.Errorf("a small body still fits: %d %s", a.Status, a.Body)
	}
	_ = slow.Close()
	g.NothingHeld()
}

// badJSON are bodies that two readers would read in two ways, or that cost one of them too much.
func badJSON() map[string]string {
	utf16le := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(ChatBody)) {
		utf16le = append(utf16le, byte(u), byte(u>>8))
	}
	return map[string]string{
		"null": "null", "an array": "[]", "a string": `"a"`, "a number": "1", "empty": " ", "two objects": "{}{}", "a comma": `{"model":"tiny",}`,
		"UTF-16": string(utf16le), "UTF-16 without BOM": string(utf16le[2:]), "a BOM": "\ufeff" + ChatBody,
		"invalid UTF-8": `{"model":"tiny","messages":[{"role":"user","content":"` + "\xff" + `"}]}`, "overlong": `{"model":"tiny","messages":[{"role":"user","content":"` + "\xc0\xaf" + `"}]}`,
		"a lone surrogate": `{"model":"tiny","messages":[],"stop":"\ud800"}`, // 500 in vLLM
		"10,000 deep":      strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000), "1,000,000 brackets": strings.Repeat("[", 1_000_000),
		"1e400": `{"model":"tiny","messages":[],"temperature":1e400}`, "NaN": `{"model":"tiny","messages":[],"temperature":NaN}`, "-Infinity": `{"model":"tiny","messages":[],"temperature":-Infinity}`,
		"5,000 digits": `{"model":"tiny","messages":[],"seed":` + strings.Repeat("9", 5000) + `}`, "a leading zero": `{"model":"tiny","messages":[],"seed":01}`,
		"a comment": `{"model":"tiny",/**/"messages":[]}`, "single quotes": `{'model':'tiny'}`, "a NUL after": ChatBody + "\x00",
		"a model of 1 MB": `{"model":"` + strings.Repeat("m", 1<<20) + `","messages":[]}`, "a model that is a list": `{"model":["tiny"],"messages":[]}`,
	}
}

func TestBadJSONIsRefusedWithWhereAndNothingArrives(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	for name, body := range badJSON() {
		a := g.Do(Request{Path: "/v1/chat/completions", Key: g.Secret("app"), Body: body})
		if a.Reason() != "bad_body" && (a.Reason() != "not_permitted" || !strings.HasPrefix(name, "a model")) {
			t.Errorf("%s: %d %.300s", name, a.Status, a.Body)
		}
		if len(a.Body) > 2048 {
			t.Errorf("%s: the answer has %d bytes: it echoes the body", name, len(a.Body))
		}
		if r := g.Record(a.ID()); r.Reason != a.Reason() || len(r.Model) > 300 {
			t.Errorf("%s: recorded as %+v", name, r)
		}
	}
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
	g.NothingHeld()
}

// A body that comes slower than its deadline ends in 408, which SDKs are told not to repeat.
func TestASlowBodyTimesOut(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Config: "timeouts: {body: 200ms}"})
	c := g.Dial()
	if _, err := io.WriteString(c, "POST /v1/messages HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nAuthorization: Bearer "+g.Secret("app")+"\r\nContent-Length: 1000\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 408 || resp.Header.Get("X-Vallum-Reason") != "body_timeout" || resp.Header.Get("X-Should-Retry") != "false" || !strings.HasPrefix(string(b), `{"type":"error"`) {
		t.Errorf("%v %d %v %s", err, resp.StatusCode, resp.Header, b)
	}
	if r := g.Record(resp.Header.Get("X-Request-Id")); r.Reason != "body_timeout" {
		t.Errorf("recorded as %+v", r)
	}
	g.NothingHeld()
}

// Who is refused before the body is read, with no key for instance, cannot hold a connection with a body that never
// comes.
func TestABodyThatNeverComesHoldsNoConnection(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Config: "timeouts: {body: 30s}"})
	key := "Authorization: Bearer " + g.Secret("app") + "\r\n"
	rows := map[string]struct{ head, reason string }{
		"no key":             {"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n", "no_credential"},
		"no route":           {"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", "unknown_operation"},
		"no permission":      {"POST /pause HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n" + key + "\r\n", "not_permitted"},
		"no origin":          {"OPTIONS /v1/models HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n", "origin_not_listed"},
		"too many fields":    {"POST /v1/models HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n" + strings.Repeat("A: b\r\n", 100) + "\r\n", "bad_headers"},
		"expects to be told": {"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n", "no_credential"},
	}
	t.Run("rows", func(t *testing.T) {
		for name, row := range rows {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				c := g.Dial()
				began := time.Now()
				if _, err := io.WriteString(c, row.head); err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(c)
				if took := time.Since(began); err != nil || took > 15*time.Second || !strings.Contains(string(b), "X-Vallum-Reason: "+row.reason+"\r\n") {
					t.Errorf("after %s: %v %s", took, err, b)
				}
			})
		}
	})
	g.NothingHeld()
}

// A client that leaves in the middle of its body leaves a record and nothing else.
func TestAClientThatLeavesWithinItsBody(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{})
	for _, framing := range []string{"Content-Length: 1000\r\n\r\n{\"model\":", "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"mod\r\n"} {
		before := len(g.Records())
		c := g.Dial()
		if _, err := io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nAuthorization: Bearer "+g.Secret("app")+"\r\n"+framing); err != nil {
			t.Fatal(err)
		}
		g.Eventually("the slot", func() bool { return g.Gauge("vallum_slots") == "1" })
		_ = c.Close()
		g.Eventually("the record", func() bool {
			all := g.Records()
			return len(all) > before && all[len(all)-1].Event == audit.Refused && all[len(all)-1].Operation == "chat.create"
		})
	}
	if n := g.Fake.Arrived(); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
	g.NothingHeld()
}
