package vllmtest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"mime"
	"mime/multipart"
	"slices"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/vllm/surface"
)

// inputs are the texts of a pooling request.
func inputs(v any) []string {
	if list, ok := v.([]any); ok && len(list) > 0 {
		if _, isNumber := list[0].(json.Number); !isNumber {
			var out []string
			for _, one := range list {
				if s, ok := one.(string); ok {
					out = append(out, s)
				} else {
					out = append(out, flat(one))
				}
			}
			return out
		}
	}
	if s, ok := v.(string); ok {
		return []string{s}
	}
	if v == nil {
		return nil
	}
	return []string{flat(v)}
}

// pooled reads what all pooling routes share.
func (x *exchange) pooled(names ...string) (texts []string, model string, count int64, ok bool) {
	if !x.object() {
		return nil, "", 0, false
	}
	for _, name := range names {
		if texts = inputs(x.body[name]); texts != nil {
			break
		}
	}
	if texts == nil {
		x.missing(names[0])
		return nil, "", 0, false
	}
	model, ok = x.model()
	if !ok {
		return nil, "", 0, false
	}
	if _, ok = x.salt(); !ok {
		return nil, "", 0, false
	}
	for _, t := range texts {
		count += tokens(t)
	}
	return texts, model, count, true
}

func poolUsage(n int64) string {
	return fmt.Sprintf(`{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":0,"prompt_tokens_details":null}`, n, n)
}

// vector is a deterministic embedding of four numbers.
func vector(text string) []float32 {
	v := make([]float32, 4)
	for i, c := range []byte(text) {
		v[i%4] += float32(c) / 1024
	}
	return v
}

func packed(v []float32) []byte {
	var b []byte
	for _, f := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
	}
	return b
}

func embeddings(x *exchange) {
	texts, model, count, ok := x.pooled("input", "messages")
	if !ok {
		return
	}
	id := fmt.Sprintf("embd-%032x", x.s.next())
	format, _ := x.body["encoding_format"].(string)
	var data []string
	var raw []byte
	for i, t := range texts {
		v := vector(t)
		switch format {
		case "", "float":
			data = append(data, fmt.Sprintf(`{"index":%d,"object":"embedding","embedding":%s}`, i, flat(v)))
		case "base64":
			data = append(data, fmt.Sprintf(`{"index":%d,"object":"embedding","embedding":%s}`, i, quote(base64.StdEncoding.EncodeToString(packed(v)))))
		case "bytes", "bytes_only":
			data = append(data, fmt.Sprintf(`{"index":%d,"embed_dtype":"float32","endianness":"native","start":%d,"end":%d,"shape":[4]}`, i, len(raw), len(raw)+16))
			raw = append(raw, packed(v)...)
		default:
			x.fail(400, "Bad Request", "[{'type': 'literal_error', 'loc': ('body', 'encoding_format')}]")
			return
		}
	}
	if raw != nil {
		var header []string
		if format == "bytes" {
			header = append(header, fmt.Sprintf(`metadata: {"id":%s,"created":%d,"model":%s,"data":[%s],"usage":{"prompt_tokens":%d,"total_tokens":%d}}`,
				quote(id), time.Now().Unix(), quote(model), strings.Join(data, ","), count, count))
		}
		x.write(x.head(200, "application/octet-stream", header, "transfer-encoding: chunked"))
		x.chunk(string(raw))
		x.endStream()
		return
	}
	x.json(`{"id":%s,"object":"list","created":%d,"model":%s,"data":[%s],"usage":%s}`, quote(id), time.Now().Unix(), quote(model), strings.Join(data, ","), poolUsage(count))
}

func embedV2(x *exchange) {
	texts, _, count, ok := x.pooled("texts", "inputs", "images")
	if !ok {
		return
	}
	var vectors []string
	for _, t := range texts {
		vectors = append(vectors, flat(vector(t)))
	}
	x.json(`{"id":"embd-%032x","embeddings":{"float":[%s]},"texts":null,"meta":{"api_version":{"version":"2"},"billed_units":{"input_tokens":%d,"image_tokens":0}},"response_type":"embeddings_by_type"}`,
		x.s.next(), strings.Join(vectors, ","), count)
}

func score(x *exchange) {
	left, model, count, ok := x.pooled("text_1", "queries", "data_1")
	if !ok {
		return
	}
	var right []string
	for _, name := range []string{"text_2", "documents", "items", "data_2"} {
		if right == nil {
			right = inputs(x.body[name])
		}
	}
	if len(left) != 1 && len(left) != len(right) {
		x.fail(400, "BadRequestError", "Input lengths must be either 1:1, 1:N or N:N")
		return
	}
	var data []string
	for i, t := range right {
		count += tokens(t)
		data = append(data, fmt.Sprintf(`{"index":%d,"object":"score","score":%g}`, i, 1/float64(i+2)))
	}
	x.json(`{"id":"score-%032x","object":"list","created":%d,"model":%s,"data":[%s],"usage":%s}`, x.s.next(), time.Now().Unix(), quote(model), strings.Join(data, ","), poolUsage(count))
}

func rerank(x *exchange) {
	documents, model, count, ok := x.pooled("documents")
	if !ok {
		return
	}
	query, ok := x.body["query"].(string)
	if !ok {
		x.missing("query")
		return
	}
	var results []string
	for i, t := range documents {
		results = append(results, fmt.Sprintf(`{"index":%d,"document":{"text":%s,"multi_modal":null},"relevance_score":%g}`, i, quote(t), 1/float64(i+2)))
	}
	count += tokens(query)
	x.json(`{"id":"score-%032x","model":%s,"usage":{"prompt_tokens":%d,"total_tokens":%d},"results":[%s]}`, x.s.next(), quote(model), count, count, strings.Join(results, ","))
}

// listed answers with one row per input.
func listed(prefix, row string, names ...string) handler {
	return func(x *exchange) {
		texts, model, count, ok := x.pooled(names...)
		if !ok {
			return
		}
		var data []string
		for i := range texts {
			data = append(data, fmt.Sprintf(row, i))
		}
		x.json(`{"id":"%s-%032x","object":"list","created":%d,"model":%s,"data":[%s],"usage":%s}`, prefix, x.s.next(), time.Now().Unix(), quote(model), strings.Join(data, ","), poolUsage(count))
	}
}

// decisions answers each question with a probability. Unlike its sisters' its request takes no field that vLLM does not
// know (openai/decisions/protocol.py of 0.33.0: extra is forbidden), and its usage has the responses' form.
func decisions(x *exchange) {
	if !x.object() {
		return
	}
	for name := range x.body {
		if !slices.ContainsFunc(x.s.o.Surface.Models["DecisionRequest"].Fields, func(f surface.Field) bool { return f.Name == name }) {
			x.fail(400, "Bad Request", "1 validation error: 'type': 'extra_forbidden', 'loc': ('body', "+quote(name)+")")
			return
		}
	}
	questions, ok := x.body["questions"].([]any)
	if !ok || len(questions) == 0 || x.body["input"] == nil {
		x.missing("questions")
		return
	}
	model, ok := x.model()
	if !ok {
		return
	}
	salt, ok := x.salt()
	if !ok {
		return
	}
	var answers []string
	for _, q := range questions {
		question, _ := q.(map[string]any)
		name, err := json.Marshal(question["name"])
		if err != nil || question["type"] != "predicate" {
			x.fail(400, "BadRequestError", "this fake answers predicates only")
			return
		}
		answers = append(answers, fmt.Sprintf(`{"type":"predicate","name":%s,"probability":0.5}`, name))
	}
	text := flat(x.body["input"])
	count := tokens(text) * int64(len(answers))
	x.json(`{"model":%s,"answers":[%s],"usage":{"input_tokens":%d,"input_tokens_details":{"cached_tokens":%d,"cache_write_tokens":0},"output_tokens":%d,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":%d}}`,
		quote(model), strings.Join(answers, ","), count, min(x.s.cache.hit(model, salt, text), count-1), len(answers), count+int64(len(answers)))
}

func tokenize(x *exchange) {
	if !x.object() {
		return
	}
	text, ok := x.body["prompt"].(string)
	if !ok {
		text = flat(x.body["messages"])
	}
	if _, ok := x.model(); !ok {
		return
	}
	var ids []int
	for _, c := range []byte(text[:min(len(text), 4096)]) {
		ids = append(ids, int(c))
	}
	x.json(`{"count":%d,"max_model_len":%d,"tokens":%s,"token_strs":null}`, len(ids), x.s.o.MaxModelLen, flat(ids))
}

func detokenize(x *exchange) {
	if !x.object() {
		return
	}
	ids, _ := x.body["tokens"].([]any)
	if _, ok := x.model(); !ok {
		return
	}
	var text []byte
	for _, v := range ids {
		n, _ := integer(v)
		text = append(text, byte(n))
	}
	x.json(`{"prompt":%s}`, quote(string(text)))
}

// audio answers a form with the words of a generation, plain or streamed.
func audio(object string) handler {
	return func(x *exchange) {
		kind, params, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
		if err != nil || kind != "multipart/form-data" {
			x.missing("file")
			return
		}
		form := multipart.NewReader(bytes.NewReader(x.r.Body), params["boundary"])
		x.body = map[string]any{}
		size := 0
		for {
			part, err := form.NextRawPart()
			if err != nil {
				break
			}
			value, err := io.ReadAll(part)
			if err != nil {
				break
			}
			if part.FormName() == "file" {
				size = len(value)
				continue
			}
			x.body[part.FormName()] = string(value)
		}
		if size == 0 {
			x.missing("file")
			return
		}
		g, ok := x.start("trsc", fmt.Sprint(size), "max_completion_tokens")
		if !ok {
			return
		}
		if !g.stream {
			switch seconds := size/32000 + 1; { // speech_to_text/base/serving.py of 0.32.0
			case x.body["response_format"] == "verbose_json":
				x.json(`{"duration":%d.5,"language":"en","text":%s,"segments":[],"words":null}`, seconds-1, quote(g.text()))
			case object == "translation.chunk":
				x.json(`{"text":%s}`, quote(g.text()))
			default:
				x.json(`{"text":%s,"usage":{"type":"duration","seconds":%d}}`, quote(g.text()), seconds)
			}
			return
		}
		g.usage = lax(x.body["stream_include_usage"])
		x.stream()
		for w, word := range g.words {
			finish := "null"
			if w == len(g.words)-1 {
				finish = `"stop"`
			}
			if !x.event(fmt.Sprintf("data: {\"id\":%s,\"object\":%s,\"created\":%d,\"model\":%s,\"choices\":[{\"delta\":{\"content\":%s},\"finish_reason\":%s,\"stop_reason\":null}]}\n\n",
				quote(g.id), quote(object), g.created, quote(g.model), quote(word), finish)) {
				return
			}
		}
		x.finishOpenAI(g, object)
	}
}
