package main

import (
	"bytes"
	"encoding/binary"
	"mime/multipart"

	"github.com/vallum/vallum/internal/vllm"
)

const (
	demoRendered = `{"token_ids":[1,2,3],"sampling_params":{}}`
	demoRerank   = `{"model":"tiny","query":"wall","documents":["a wall","a door"]}`
	demoScore    = `{"model":"tiny","text_1":"wall","text_2":"door"}`
	demoInput    = `{"model":"tiny","input":"hello"}`
	demoMessages = `{"model":"tiny","messages":[{"role":"user","content":"hello"}],"max_tokens":5}`
	demoAdapter  = `{"lora_name":"demo","lora_path":"/srv/adapters/demo"}`
	demoSystem1  = `{"model":"tiny","state":"a door","questions":{"open":{"type":"bool","instructions":"open?"}}}`
)

// demoBodies are what a client sends to each operation that reads a body; the others get {}.
var demoBodies = map[string]string{
	"adapters.load":             `{"name":"demo","src":"/srv/adapters/demo"}`,
	"chat.batch":                `{"model":"tiny","messages":[[{"role":"user","content":"hello"}]]}`,
	"chat.create":               demoMessages,
	"chat.render":               demoMessages,
	"classify.create":           demoInput,
	"cohere.chat":               demoMessages,
	"completions.create":        `{"model":"tiny","prompt":"hello"}`,
	"completions.render":        `{"model":"tiny","prompt":"hello"}`,
	"decisions.create":          demoSystem1,
	"detokenize.create":         `{"model":"tiny","tokens":[1,2,3]}`,
	"embed.v2":                  `{"model":"tiny","texts":["hello"],"input_type":"search_query"}`,
	"embeddings.create":         demoInput,
	"engine.abort":              `{"request_ids":["somebody-elses"]}`,
	"engine.scale":              `{"new_data_parallel_size":2}`,
	"fault_tolerance.apply":     `{"instruction":"retry"}`,
	"generative_scoring.create": `{"model":"tiny","query":"wall","items":["a door"],"label_token_ids":[1,2]}`,
	"inference.generate":        demoRendered,
	"invocations.create":        demoMessages,
	"lora.load":                 demoAdapter,
	"lora.unload":               `{"lora_name":"demo"}`,
	"messages.count_tokens":     demoMessages,
	"messages.create":           demoMessages,
	"pooling.create":            demoInput,
	"rerank.root":               demoRerank,
	"rerank.v1":                 demoRerank,
	"rerank.v2":                 demoRerank,
	"responses.create":          demoInput,
	"rpc.collective":            `{"method":"shutdown"}`,
	"score.create":              demoScore,
	"score.root":                demoScore,
	"systemone.create":          demoSystem1,
	"tokenize.create":           `{"model":"tiny","prompt":"hello"}`,
}

// demoForm is a recording of a tenth of a second of silence, as a client uploads it.
func demoForm(model string) (body, contentType string) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	_ = w.WriteField("model", model) // into memory: it cannot fail
	part, _ := w.CreateFormFile("file", "silence.wav")
	_, _ = part.Write(silence())
	_ = w.Close()
	return b.String(), w.FormDataContentType()
}

// silence is a WAV file: 16 bits, one channel, 16 kHz.
func silence() []byte {
	const rate, data = 16000, 2 * 1600
	b := []byte("RIFF")
	b = binary.LittleEndian.AppendUint32(b, 36+data)
	b = append(b, "WAVEfmt "...)
	b = binary.LittleEndian.AppendUint32(b, 16)
	b = binary.LittleEndian.AppendUint16(b, 1) // PCM
	b = binary.LittleEndian.AppendUint16(b, 1) // channels
	b = binary.LittleEndian.AppendUint32(b, rate)
	b = binary.LittleEndian.AppendUint32(b, 2*rate)
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 16)
	b = append(b, "data"...)
	b = binary.LittleEndian.AppendUint32(b, data)
	return append(b, make([]byte, data)...)
}

// didWord is what vLLM did with a request that came to it directly, in a word of at most 7 letters.
func didWord(op *vllm.Operation, status int) string {
	switch {
	case status == 401:
		return "guarded" // by --api-key
	case status == 403:
		return "off"
	case status == 404:
		return "absent"
	case status >= 400:
		return "failed"
	}
	if word := demoWords[op.ID]; word != "" {
		return word
	}
	return "told" // it only discloses
}

// demoWords are what the operations do that do not only disclose something.
var demoWords = map[string]string{
	"adapters.load": "loaded", "adapters.unload": "removed", "lora.load": "loaded", "lora.unload": "removed",
	"cache.release_kv": "freed", "cache.reset_encoder": "emptied", "cache.reset_mm": "emptied", "cache.reset_prefix": "emptied",
	"engine.sleep": "slept", "engine.wake_up": "woke", "rpc.collective": "ran", "weights.check": "read",
	"weights.finish_update": "closed", "weights.init_transfer": "joined", "weights.shutdown_transfer": "ended",
	"weights.start_draft_update": "opened", "weights.start_update": "opened", "weights.update": "swapped", "weights.update_version": "renamed",
	"profile.start": "started", "profile.stop": "stopped",
	"engine.abort": "aborted", "engine.pause": "paused", "engine.resume": "resumed", "engine.scale": "scaled", "fault_tolerance.apply": "applied",
	"classify.create": "classed", "generative_scoring.create": "scored", "invocations.create": "wrote", "pooling.create": "pooled",
	"rerank.root": "ranked", "score.root": "scored", "tokenize.create": "cut", "detokenize.create": "joined",
	"chat.create": "wrote", "chat.batch": "wrote", "completions.create": "wrote", "responses.create": "wrote", "messages.create": "wrote",
	"inference.generate": "wrote", "inference.abort": "aborted", "health.read": "alive", "ping.read": "alive", "ping.create": "alive",
	"docs.swagger": "shown", "docs.swagger_head": "shown", "docs.redoc": "shown", "docs.redoc_head": "shown",
	"docs.oauth2_redirect": "shown", "docs.oauth2_redirect_head": "shown", "openapi.read": "shown", "openapi.head": "shown",
}
