package vllmtest

import (
	"fmt"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/vllm/surface"
)

// handlers answer in vLLM's shapes. What is not here is answered by wouldHave.
var handlers = map[string]handler{
	"POST /v1/chat/completions":       chat,
	"POST /v1/chat/completions/batch": batch,
	"POST /v1/completions":            completions,
	"POST /v1/responses":              responses,
	"GET /v1/responses/{response_id}": func(x *exchange) {
		x.fail(404, "invalid_request_error", "Response with id '"+strings.TrimPrefix(x.r.Path, "/v1/responses/")+"' not found.")
	},
	"POST /v1/messages":              messages,
	"POST /v1/messages/count_tokens": countTokens,
	"POST /invocations":              invocations,
	"POST /v1/embeddings":            embeddings,
	"POST /v2/embed":                 embedV2,
	"POST /v1/score":                 score,
	"POST /score":                    score,
	"POST /v1/rerank":                rerank,
	"POST /v2/rerank":                rerank,
	"POST /rerank":                   rerank,
	"POST /classify":                 listed("classify", `{"index":%d,"label":"LABEL_0","probs":[0.5,0.25,0.25],"num_classes":3}`, "input", "messages"),
	"POST /pooling":                  listed("pool", `{"index":%d,"object":"pooling","data":[0.5,0.25]}`, "input", "messages", "data"),
	"POST /generative_scoring":       listed("genscore", `{"index":%d,"object":"score","score":0.5}`, "items"),
	"POST /v1/systemone":             listed("sys1", `{"index":%d,"decision":"yes"}`, "questions"),
	"POST /v1/decisions":             decisions,
	"POST /tokenize":                 tokenize,
	"POST /detokenize":               detokenize,
	"POST /v1/audio/transcriptions":  audio("transcription.chunk"),
	"POST /v1/audio/translations":    audio("translation.chunk"),
	"GET /v1/models":                 models,
	"GET /health":                    func(x *exchange) { x.respond(200, "", "") },
	"GET /ping":                      func(x *exchange) { x.respond(200, "", "") },
	"POST /ping":                     func(x *exchange) { x.respond(200, "", "") },
	"GET /version":                   func(x *exchange) { x.json(`{"version":%s}`, quote(x.s.o.Version)) },
	"GET /load":                      func(x *exchange) { x.json(`{"server_load":0}`) },
	"GET /metrics":                   metrics,
	"ANY /metrics":                   metrics,
	"GET /is_paused":                 func(x *exchange) { x.json(`{"is_paused":%t}`, x.s.is(&x.s.paused)) },
	"GET /is_sleeping":               func(x *exchange) { x.json(`{"is_sleeping":%t}`, x.s.is(&x.s.sleeping)) },
	"POST /is_scaling_elastic_ep":    func(x *exchange) { x.json(`{"is_scaling_elastic_ep":false}`) },
	"GET /openapi.json":              func(x *exchange) { x.json(`{"openapi":"3.1.0","info":{"title":"vLLM","version":"fake"}}`) },
	"GET /kv_event_sources":          func(x *exchange) { x.json(`{"fake":"host, port and topic of the sockets that publish cache events"}`) },
}

// effects says what a real server would now have done. A route that is new in a release has no line here and is
// answered all the same.
var effects = map[string]string{
	"/abort_requests":                  "the named requests, whosever they are, would now be aborted",
	"/adapters":                        "an adapter would now be loaded from any path",
	"/adapters/{adapter_name}":         "the adapter would now be gone",
	"/collective_rpc":                  "the named method would now have run on every worker",
	"/fault_tolerance/apply":           "all ranks would now be recovering",
	"/fault_tolerance/status":          "the state of every engine would stand here",
	"/finish_weight_update":            "the window for replacing weights would now be closed",
	"/get_world_size":                  "the number of workers would stand here",
	"/init_weight_transfer_engine":     "the engine would now join a group at the address that was named",
	"/pause":                           "the engine would now be paused",
	"/release_kv_cache_memory":         "the cache's memory would now be released",
	"/reset_encoder_cache":             "the encoder cache would now be empty",
	"/reset_mm_cache":                  "the multimodal cache would now be empty",
	"/reset_prefix_cache":              "the prefix cache would now be empty",
	"/resume":                          "the engine would now be running again",
	"/scale_elastic_ep":                "the deployment would now be scaling, and answer 503 to everybody",
	"/server_info":                     "the whole configuration, environment and package list would stand here",
	"/shutdown_weight_transfer_engine": "the transfer of weights would now have ended",
	"/sleep":                           "the weights would now be gone from the GPU",
	"/start_draft_weight_update":       "the draft model's weights could now be replaced",
	"/start_profile":                   "the profiler would now be running",
	"/start_weight_update":             "the weights could now be replaced",
	"/stop_profile":                    "the profiler's trace would now be on the disk",
	"/tokenizer_info":                  "the chat template and the tokenizer's configuration would stand here",
	"/update_weight_version":           "the weights would now be said to have another version",
	"/update_weights":                  "the weights would now be the caller's",
	"/v1/load_lora_adapter":            "an adapter would now be loaded from any path",
	"/v1/unload_lora_adapter":          "the adapter would now be gone",
	"/wake_up":                         "the engine would now be awake",
	"/weight_checker":                  "the weights would now have been read",
	"/weight_info":                     "the version of the weights would stand here",
}

func wouldHave(r *surface.Route) handler {
	effect := effects[r.Path]
	if effect == "" {
		effect = r.Method + " " + r.Path + " would now have been done"
	}
	path := r.Path
	return func(x *exchange) {
		switch path {
		case "/pause", "/resume":
			x.s.set(&x.s.paused, path == "/pause")
		case "/sleep", "/wake_up":
			x.s.set(&x.s.sleeping, path == "/sleep")
		}
		x.json(`{"fake":%s}`, quote(effect))
	}
}

func (s *Server) is(state *bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *state
}

func (s *Server) set(state *bool, to bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*state = to
}

// models lists what is served, with the paths on disk that vLLM tells everybody.
func models(x *exchange) {
	var data []string
	for _, m := range x.s.o.Models {
		data = append(data, fmt.Sprintf(`{"id":%s,"object":"model","created":%d,"owned_by":"vllm","root":%s,"parent":null,"max_model_len":%d,"permission":[{"id":"modelperm-fake","object":"model_permission","created":%d,"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}]}`,
			quote(m), time.Now().Unix(), quote("/srv/models/secret-path/"+m), x.s.o.MaxModelLen, time.Now().Unix()))
	}
	x.json(`{"object":"list","data":[%s]}`, strings.Join(data, ","))
}

func metrics(x *exchange) {
	x.respond(200, "text/plain; version=1.0.0; charset=utf-8", fmt.Sprintf(
		"# HELP vllm:num_requests_running Number of requests in model execution batches.\n# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=%s} 0.0\n", quote(x.s.o.Models[0])))
}
