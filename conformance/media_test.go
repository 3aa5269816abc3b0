//go:build conformance

package conformance

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"net/http/httptest"
	"sync/atomic"

	"github.com/vallum/vallum/conformance/report"
)

// recorder is a web server on loopback, standing for one that only the machine
// itself should reach. It serves a picture and counts who came for it.
type recorder struct {
	*httptest.Server
	fetched atomic.Int64
}

func newRecorder() *recorder {
	r := &recorder{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		r.fetched.Add(1)
		w.Header().Set("Content-Type", "image/png")
		w.Write(picture(color.RGBA{R: 255, A: 255}))
	}))
	return r
}

// picture is a PNG of 32 by 32 points of one colour.
func picture(c color.Color) []byte {
	img := image.NewRGBA(image.Rect(0, 0, 32, 32))
	for i := range 32 * 32 {
		img.Set(i%32, i/32, c)
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func dataURL(c color.Color) string {
	return "data:image/png;base64," + base64.StdEncoding.EncodeToString(picture(c))
}

// looking is a chat about one picture. part is its image_url part.
func looking(part doc) doc {
	part["type"] = "image_url"
	return doc{
		"model": "tiny-vision", "max_tokens": 4, "temperature": 0, "logprobs": true,
		"messages": []doc{{"role": "user", "content": []doc{{"type": "text", "text": "hi"}, part}}},
	}
}

func at(url string) doc { return doc{"image_url": doc{"url": url}} }

// attacksOnMedia make vLLM fetch what only it can reach, and cross tenants by
// the names of pictures.
func attacksOnMedia() []proof {
	var out []proof
	for _, f := range fetches() {
		out = append(out, proof{f.name, f.run})
	}
	return append(out,
		proof{"a second tenant reads a picture by its uuid", readByUUID},
		proof{"a second tenant's picture is poisoned by its uuid", poisonByUUID},
	)
}

// fetch is a request that makes vLLM fetch a URL.
type fetch struct {
	name, reason string
	shared       bool // direct, it needs vLLM's key
	request      func(url string) call
}

func fetches() []fetch {
	return []fetch{
		{"a URL in /tokenize without a key is fetched", "not_permitted", false, func(u string) call { return post("/tokenize", looking(at(u))) }},
		{"a URL in /invocations without a key is fetched", "not_permitted", false, func(u string) call { return post("/invocations", looking(at(u))) }},
		{"a URL in a chat is fetched", "forbidden_parameter", true, func(u string) call { return post("/v1/chat/completions", looking(at(u))) }},
		{"a URL in upper case is fetched", "forbidden_parameter", true, func(u string) call {
			return post("/v1/chat/completions", looking(at("HTTP"+u[len("http"):])))
		}},
		{"a URL in a message is fetched", "forbidden_parameter", true, func(u string) call {
			return post("/v1/messages", doc{"model": "tiny-vision", "max_tokens": 4, "messages": []doc{{"role": "user", "content": []doc{
				{"type": "text", "text": "hi"}, {"type": "image", "source": doc{"type": "url", "url": u}},
			}}}})
		}},
		{"a URL in a tool result is fetched", "forbidden_parameter", true, func(u string) call {
			return post("/v1/messages", doc{"model": "tiny-vision", "max_tokens": 4, "messages": []doc{
				{"role": "user", "content": "hi"},
				{"role": "assistant", "content": []doc{{"type": "tool_use", "id": "t1", "name": "f", "input": doc{}}}},
				{"role": "user", "content": []doc{{"type": "tool_result", "tool_use_id": "t1", "content": []doc{
					{"type": "image", "source": doc{"type": "url", "url": u}},
				}}}},
			}})
		}},
		{"a URL in a response is fetched", "forbidden_parameter", true, func(u string) call {
			return post("/v1/responses", doc{"model": "tiny-vision", "max_output_tokens": 4, "input": []doc{{"role": "user", "content": []doc{
				{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": u},
			}}}})
		}},
	}
}

// run shows that the URL is fetched by vLLM alone, and through the gateway by
// nobody.
func (f fetch) run(p *report.Proof, s *stand) {
	rec := newRecorder()
	defer rec.Close()
	from := s.direct()
	if f.shared {
		from = s.holder()
	}
	got := from.do(p, f.request(rec.URL+"/secret.png"))
	if rec.fetched.Load() == 0 {
		p.Fatalf("vLLM alone did not fetch it: %s", got)
	}
	s.needGate(p)
	rec.fetched.Store(0)
	for _, t := range []attempt{{"", "no_credential"}, {"anna", f.reason}} {
		if err := refused(t.reason)(s.as(t.as).do(p, f.request(rec.URL+"/secret.png"))); err != nil {
			p.Errorf("%s through Vallum: %v", caller(t.as), err)
		}
	}
	if n := rec.fetched.Load(); n != 0 {
		p.Errorf("through Vallum vLLM fetched it %d time(s)", n)
	}
}

var (
	blue  = color.RGBA{B: 255, A: 255}
	green = color.RGBA{G: 255, A: 255}
)

// seen is what the model made of a picture: its log-probabilities.
func seen(a answer) string { return fmt.Sprint(a.field("choices.0.logprobs.content")) }

func named(uuid string, part doc) doc {
	part["uuid"] = uuid
	return part
}

// readByUUID: the second tenant sends no picture, only the first one's uuid
// and a salt of its own, and gets an answer about the first one's picture.
func readByUUID(p *report.Proof, s *stand) {
	path, uuid := "/v1/chat/completions", "u-"+randomHex()
	first := s.holder().do(p, post(path, looking(named(uuid, at(dataURL(blue))))))
	steal := looking(named(uuid, doc{"image_url": nil}))
	steal["cache_salt"] = "another-tenant"
	second := s.holder().do(p, post(path, steal))
	if second.status != http.StatusOK || seen(first) != seen(second) {
		p.Fatalf("vLLM alone did not give the picture to another tenant: %s", second)
	}
	s.needGate(p)
	if err := refused("forbidden_parameter")(s.as("anna").do(p, post(path, looking(named(uuid, at(dataURL(blue))))))); err != nil {
		p.Errorf("anna names a picture through Vallum: %v", err)
	}
	if err := refused("forbidden_parameter")(s.as("bert").do(p, post(path, looking(named(uuid, doc{"image_url": nil}))))); err != nil {
		p.Errorf("bert asks for anna's picture through Vallum: %v", err)
	}
}

// poisonByUUID: the first tenant names a blue picture; the second sends a
// green one under that name and gets an answer about the blue one.
func poisonByUUID(p *report.Proof, s *stand) {
	path, uuid := "/v1/chat/completions", "u-"+randomHex()
	honest := s.holder().do(p, post(path, looking(at(dataURL(green)))))
	planted := s.holder().do(p, post(path, looking(named(uuid, at(dataURL(blue))))))
	poisoned := s.holder().do(p, post(path, looking(named(uuid, at(dataURL(green))))))
	if poisoned.status != http.StatusOK || seen(poisoned) != seen(planted) || seen(poisoned) == seen(honest) {
		p.Fatalf("vLLM alone did not answer about the planted picture: %s", poisoned)
	}
	s.needGate(p)
	if err := refused("forbidden_parameter")(s.as("bert").do(p, post(path, looking(named(uuid, at(dataURL(green))))))); err != nil {
		p.Errorf("bert names a picture through Vallum: %v", err)
	}
	got := s.as("bert").do(p, post(path, looking(at(dataURL(green)))))
	if got.status != http.StatusOK || seen(got) != seen(honest) {
		p.Errorf("bert's own picture, unnamed, through Vallum: want the honest answer, got %s", got)
	}
}

func operationsOfMedia() []operation {
	message := doc{"model": "tiny-vision", "max_tokens": 4, "messages": []doc{{"role": "user", "content": []doc{
		{"type": "text", "text": "hi"},
		{"type": "image", "source": doc{"type": "base64", "media_type": "image/png", "data": base64.StdEncoding.EncodeToString(picture(blue))}},
	}}}}
	return []operation{
		{name: "chat about a picture in a data: URL", request: post("/v1/chat/completions", looking(at(dataURL(blue)))), good: ok(`"choices"`)},
		{name: "a message about a picture in base64", request: post("/v1/messages", message), good: ok(`"content"`)},
	}
}
