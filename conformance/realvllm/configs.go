package realvllm

import "github.com/vallum/vallum/conformance/parts"

// The configurations that the proofs run against. Each is started once.

// OpenA is a generating model with every dangerous route open, its own key, on
// a UNIX socket: what an operator must be able to put behind the gate.
func OpenA(key string) Config {
	return Config{
		Name: "A", Model: "generate", Served: "tiny", Key: key, Socket: true,
		Args: []string{
			"--max-model-len", "1024",
			"--enable-tokenizer-info-endpoint",
			"--enable-prompt-tokens-details",
			"--enable-auto-tool-choice", "--tool-call-parser", "hermes",
			"--profiler-config", `{"profiler":"torch","torch_profiler_dir":"{run}/profile"}`,
		},
		Env: []string{"VLLM_SERVER_DEV_MODE=1", "VLLM_ENABLE_RESPONSES_API_STORE=1"},
	}
}

// DefaultB is the same model by default flags, on loopback TCP, without a key.
func DefaultB() Config {
	return Config{Name: "B", Model: "generate", Served: "tiny", Args: []string{"--max-model-len", "1024"}}
}

// EmbedC is an embedding model.
func EmbedC() Config {
	return Config{
		Name: "C", Model: "embed", Served: "tiny-embed",
		Args: []string{"--max-model-len", "512", "--runner", "pooling"},
	}
}

// ClassifyD is a classifier of three labels.
func ClassifyD() Config {
	return Config{
		Name: "D", Model: "classify", Served: "tiny-classify",
		Args: []string{"--max-model-len", "512", "--runner", "pooling"},
	}
}

// MediaE is a multimodal model with its own key and no limit on where it
// fetches media from, which is the default.
func MediaE(key string) Config {
	return Config{
		Name: "E", Model: "multimodal", Served: "tiny-vision", Key: key,
		Args: []string{"--max-model-len", "1024"},
	}
}

// SpeechF is a Whisper by default flags, without a key.
func SpeechF() Config {
	return Config{Name: "F", Model: "speech", Served: "tiny-speech", Args: []string{"--max-model-len", "64"}}
}

// OldestG is A's configuration of the oldest release for which behaviour is
// promised, on loopback TCP.
func OldestG(key string) Config {
	c := OpenA(key)
	c.Name, c.Version, c.Socket = "G", parts.OldestVLLMVersion, false
	return c
}

// PairH is two servers of one model, each under a name of its own and one that
// both have, each with a key of its own. Development mode opens what can be
// told to one of them only.
func PairH(key string) (left, right Config) {
	c := Config{Model: "generate", Also: []string{"both"}, Args: []string{"--max-model-len", "1024"}, Env: []string{"VLLM_SERVER_DEV_MODE=1"}}
	left, right = c, c
	left.Name, left.Served, left.Key = "H-left", "left", key+"-left"
	right.Name, right.Served, right.Key = "H-right", "right", key+"-right"
	return left, right
}
