// Package vllm is what vLLM serves and reads: its operations, their fields, and how dangerous each is.
// It refuses what it does not name: an operation or a field that is in no table does not exist for the gateway.
package vllm

// Operation is one row of the catalogue: a method and a path of vLLM's HTTP servers, and what is known of it.
// The rows are operations.json, checked by tests against the surfaces extracted from vLLM's releases.
type Operation struct {
	ID       string    `json:"id"`       // stable, such as "chat.create"; used in configuration, records and metrics
	Method   string    `json:"method"`   // GET, POST, DELETE; WEBSOCKET for a handshake
	Path     string    `json:"path"`     // the literal, or a template with {segments}
	Server   string    `json:"server"`   // "" for the API port; otherwise which other server of vLLM listens there
	Group    Group     `json:"group"`    // the security guide's group
	Since    string    `json:"since"`    // first release that serves it; "" for before 0.8.5
	Until    string    `json:"until"`    // last release that serves it; "" when the newest still does
	Opens    []Opening `json:"opens"`    // what has to be set for it to exist, per range of releases
	Guarded  []Guard   `json:"guarded"`  // whether vLLM's own key check covers it, per range of releases
	Allows   string    `json:"allows"`   // what it discloses, or lets a caller do, in one sentence
	Query    []string  `json:"query"`    // query keys that vLLM reads; none is ever forwarded
	Request  BodyKind  `json:"request"`  // what body it takes
	Response ReplyKind `json:"response"` // what it answers
	Streams  bool      `json:"streams"`  // answers server-sent events when the body says "stream": true
	Dialect  Dialect   `json:"dialect"`  // in which form errors and usage are written
	Model    bool      `json:"model"`    // the body names a model
	Grant    Grantable `json:"grant"`    // how a role can be given it
	Why      string    `json:"why"`      // when Grant is Never: why, in words for the operator
	Answered bool      `json:"answered"` // Vallum answers it itself and never forwards it
	Ours     bool      `json:"ours"`     // no release of vLLM serves it: clients ask for it, and Vallum answers
	Mount    bool      `json:"mount"`    // a mount or wildcard of Starlette's, which matches more than its path: never looked up
	Salt     string    `json:"salt"`     // first release whose body has a cache_salt; "" when none has
}

// Opening is a condition under which releases From..To register the route; To "" means up to the newest.
type Opening struct {
	From      string `json:"from"`
	To        string `json:"to,omitempty"`
	Condition string `json:"condition"` // "always", "env X=1", "flag --y", "task:generate", joined by " and " or " | "
}

// Guard says whether vLLM's --api-key covers the route in releases From..To.
type Guard struct {
	From    string `json:"from"`
	To      string `json:"to,omitempty"`
	Guarded bool   `json:"guarded"`
}

// Group is a group of vLLM's security guide (docs/usage/security.md), with two of ours for what the guide omits.
type Group string

// The groups.
const (
	Inference         Group = "inference"          // under a prefix that the key covers
	InferenceUnprefix Group = "inference-unprefix" // inference without a prefix: open although a key is set
	Control           Group = "control"            // operational control
	Probing           Group = "utility"            // the guide says utility: health, version, load, and tokenizing
	TokenizerInfo     Group = "tokenizer-info"
	Development       Group = "development"
	Profiler          Group = "profiler"
	LoRA              Group = "lora"
	Documentation     Group = "documentation"
	Metrics           Group = "metrics"
	Plugin            Group = "plugin" // other servers and scale-out routes
)

// BodyKind is the body that an operation takes.
type BodyKind string

// The kinds of request bodies. The zero value takes none: a body is refused.
const (
	NoBody   BodyKind = ""
	JSONBody BodyKind = "json"
	FormBody BodyKind = "form" // multipart/form-data
)

// ReplyKind is the body that an operation answers.
type ReplyKind string

// The kinds of replies.
const (
	EmptyReply ReplyKind = ""
	JSONReply  ReplyKind = "json"
	TextReply  ReplyKind = "text"
	BytesReply ReplyKind = "bytes"
)

// Dialect is the form in which errors, usage and stream ends are written.
type Dialect string

// The dialects. The zero value is OpenAI's, the form that every client of vLLM knows.
const (
	OpenAI    Dialect = ""
	Anthropic Dialect = "anthropic"
	Responses Dialect = "responses" // OpenAI's errors; events with names, no [DONE]
)

// Grantable is how a role may be given an operation. The zero value is never.
type Grantable string

// How an operation can be granted.
const (
	Never        Grantable = ""
	ByGroup      Grantable = "group"       // by its id, or with its group
	IDOnly       Grantable = "id"          // by its id only
	Acknowledged Grantable = "acknowledge" // by its id only, with acknowledge: "<id>" beside it
)
