package verdict

import (
	"time"
)

// Reason is why a request was refused: the same word in the response, the record, the metric label, the docs and the tests.
// The zero Reason is Unanswered.
type Reason uint8

// The reasons. reasons below holds what each one means; docs/reasons.md is generated from it.
const (
	Unanswered Reason = iota
	AmbiguousPath
	UnknownOperation
	BadHeaders
	UntrustedProxy
	OriginNotListed
	NoCredential
	TooManyFailures
	NotPermitted
	TooManyRequests
	Busy
	BodyTooLarge
	BodyTimeout
	BadBody
	ForbiddenParameter
	UnknownParameter
	ThreadUnsupported
	UpstreamNotNamed
	CacheNotIsolated
	OverBudget
	AuditUnavailable
	UpstreamUnavailable
	UpstreamFailed
	UpstreamTimeout
	UpstreamBusy
	ContextLengthExceeded
	MaxTokensTooLarge
	FeatureNotEnabled
	UnsupportedByUpstream
	UpstreamRefused
	Revoked
	CallerLeft
	ShuttingDown
	InternalError
	reasonCount // how many there are; not a reason
)

// info is one row of the table of reasons.
type info struct {
	code      string // in responses, records, metrics
	status    int
	openai    string // error.type in OpenAI's form
	anthropic string // error.type in Anthropic's form
	sentence  string // what the caller reads
	operator  string // what an operator does about it; goes into docs/reasons.md
	after     time.Duration
	noRetry   bool // answer x-should-retry: false although SDKs would retry the status
}

const (
	invalid    = "invalid_request_error"
	permission = "permission_error"
	rateLimit  = "rate_limit_error"
	overloaded = "overloaded_error"
	apiError   = "api_error"
	serverErr  = "server_error"
)

var reasons = [reasonCount]info{
	Unanswered:       {"unanswered", 500, serverErr, apiError, "The request was refused because a stage gave no answer.", "A defect of Vallum: a stage returned its zero value. Report it with the record.", 0, true},
	AmbiguousPath:    {"ambiguous_path", 400, invalid, invalid, "The path has more than one reading and is refused.", "The client's base URL is wrong or somebody probes. A path is accepted in one spelling only.", 0, false},
	UnknownOperation: {"unknown_operation", 404, invalid, "not_found_error", "There is no such operation.", "No operation of the catalogue has this method and path; see docs/operations.md.", 0, false},
	BadHeaders:       {"bad_headers", 431, invalid, invalid, "The request's headers are refused.", "More than 100 fields, more than 64 KiB, or a content header that may stand only once stands twice. (Two credentials are no_credential.)", 0, false},
	UntrustedProxy:   {"untrusted_proxy", 403, permission, permission, "This address does not accept direct connections.", "The listener's `terminated_by` does not contain the peer's address.", 0, false},
	OriginNotListed:  {"origin_not_listed", 403, permission, permission, "This origin may not call this API from a browser.", "Add the origin to `cors.origins` if browsers should call Vallum directly.", 0, false},
	NoCredential:     {"no_credential", 401, "authentication_error", "authentication_error", "A valid API key is required.", "The key is missing, malformed, unknown, expired or revoked; callers are not told which, and strangers are counted in the records, not named. `vallum keys list --all` shows what became of a key; `vallum serve --log-level debug` logs each cause.", 0, false},
	TooManyFailures:  {"too_many_failures", 429, rateLimit, rateLimit, "Too many failed attempts from this address.", "The address sent too many wrong keys; it may try again after the time given.", 10 * time.Second, true},
	NotPermitted:     {"not_permitted", 403, permission, permission, "This key is not permitted to do this.", "No role of the key grants the operation on the model. `vallum explain` names the rule and the line that would allow it.", 0, false},
	TooManyRequests:  {"too_many_requests", 429, rateLimit, rateLimit, "Too many requests for this key.", "`requests_per_minute`, `burst` or `concurrent` of the key's role is used up.", time.Second, false},
	Busy:             {"busy", 503, serverErr, overloaded, "The gateway holds as many bodies as it may.", "`bodies.max_buffered` is used up, by request bodies or by whole replies: raise it, or lower `bodies.max_json`, `bodies.max_form` and `bodies.max_reply`.", time.Second, false},
	BodyTooLarge:     {"body_too_large", 413, invalid, "request_too_large", "The request body is too large.", "The body is over the operation's cap; raise `bodies.max_json` or `bodies.max_form` if it should pass.", 0, false},
	BodyTimeout:      {"body_timeout", 408, invalid, invalid, "The request body did not arrive in time.", "The client stopped sending; raise `timeouts.body` only for very slow links.", 0, true},
	BadBody:          {"bad_body", 400, invalid, invalid, "The request body is not acceptable.", "The body is not strict JSON, not the declared form, or a field has the wrong type; the sentence says where.", 0, false},
	ForbiddenParameter: {
		"forbidden_parameter", 403, permission, permission, "The request has a parameter that is not permitted.",
		"The catalogue refuses the field's value for everybody, for this role or for the release of the model's servers; docs/operations.md gives the reason.", 0, false,
	},
	UnknownParameter: {"unknown_parameter", 400, invalid, invalid, "The request has a parameter that this operation does not have.", "The role says `unknown_fields: refuse`; without it the field is dropped and named in the record.", 0, false},
	ThreadUnsupported: {
		"thread_unsupported", 400, invalid, invalid, "Server-side threads are not supported; send the whole conversation.",
		"Anthropic's tool_runner sent `thread`; it drops it and sends the whole history after this answer. Nothing to do.", 0, false,
	},
	UpstreamNotNamed: {"upstream_not_named", 400, invalid, invalid, "Several upstreams could answer; name one with the X-Vallum-Upstream header.", "The operation has no model to choose by; the caller has to name the upstream.", 0, false},
	CacheNotIsolated: {
		"cache_not_isolated", 403, permission, permission, "The upstream cannot keep this tenant's prompts apart from another's.",
		"The upstream's release has no cache_salt for this operation and another tenant uses it. Upgrade vLLM, give the tenant its own upstream, or write `insecure_shared_prefix_cache: true`.", 0, false,
	},
	OverBudget:          {"over_budget", 429, rateLimit, rateLimit, "The token budget of this key is used up.", "`tokens_per_minute` of the key's role is used up, counting what is reserved by running requests.", time.Second, false},
	AuditUnavailable:    {"audit_unavailable", 503, serverErr, overloaded, "The request cannot be recorded and is refused.", "The audit log cannot be written: disk full or directory unwritable. No record, no request.", 5 * time.Second, false},
	UpstreamUnavailable: {"upstream_unavailable", 503, serverErr, overloaded, "The model server is not available.", "No upstream that serves the model is alive; /readyz names it.", 5 * time.Second, false},
	UpstreamFailed:      {"upstream_failed", 502, serverErr, apiError, "The model server failed.", "The upstream broke the connection, answered 5xx or something that is not HTTP; the record has the cause.", 0, false},
	UpstreamTimeout:     {"upstream_timeout", 504, serverErr, apiError, "The model server did not answer in time.", "No first byte, or no next event, within `timeouts.first_byte` or `timeouts.between_events`. The engine may hang although its /health says 200.", 0, false},
	UpstreamBusy:        {"upstream_busy", 503, serverErr, overloaded, "The model server is busy.", "vLLM answered 503, mostly --max-num-queued-reqs reached.", time.Second, false},
	ContextLengthExceeded: {
		"context_length_exceeded", 400, invalid, invalid, "The request does not fit the model's context length.",
		"The prompt and the requested output are longer than the upstream's max_model_len.", 0, false,
	},
	MaxTokensTooLarge:     {"max_tokens_too_large", 400, invalid, invalid, "The requested number of output tokens is too large.", "max_tokens is larger than the upstream's max_model_len allows.", 0, false},
	FeatureNotEnabled:     {"feature_not_enabled", 400, invalid, invalid, "The model server has this feature switched off.", "vLLM was started without the flag that the feature needs; the gateway's log has vLLM's message.", 0, false},
	UnsupportedByUpstream: {"unsupported_by_upstream", 400, invalid, invalid, "The model server does not support a parameter of the request.", "vLLM refused a field; the gateway's log has its message.", 0, false},
	UpstreamRefused:       {"upstream_refused", 400, invalid, invalid, "The model server refused the request.", "vLLM answered 4xx; the gateway's log has its message. `upstream_errors: pass` shows it to callers.", 0, false},
	Revoked:               {"revoked", 401, "authentication_error", "authentication_error", "The API key was revoked or has expired.", "The key was revoked, expired, or lost the role, while its request was running; `vallum keys list --all` says which.", 0, false},
	CallerLeft:            {"client_left", 499, invalid, invalid, "The caller left before the answer began.", "The client closed its connection; nothing is wrong here. 499 is nginx's status for it, and nobody reads it.", 0, true},
	ShuttingDown:          {"shutting_down", 503, serverErr, overloaded, "The gateway is shutting down.", "SIGTERM: running requests may end until `timeouts.drain` is over, new ones are refused.", time.Second, false},
	InternalError:         {"internal_error", 500, serverErr, apiError, "The gateway failed.", "A panic was caught; the log has its stack. Report it.", 0, true},
}

func (r Reason) info() *info {
	if r >= reasonCount {
		r = Unanswered
	}
	return &reasons[r]
}

// String is the reason's code, such as "not_permitted".
func (r Reason) String() string { return r.info().code }

// Status is the HTTP status of the refusal.
func (r Reason) Status() int { return r.info().status }

// Sentence is the fixed sentence that the caller reads.
func (r Reason) Sentence() string { return r.info().sentence }

// ForOperator says what the operator can do about it.
func (r Reason) ForOperator() string { return r.info().operator }

// OpenAIType is error.type in OpenAI's form.
func (r Reason) OpenAIType() string { return r.info().openai }

// AnthropicType is error.type in Anthropic's form.
func (r Reason) AnthropicType() string { return r.info().anthropic }

// ShouldNotRetry reports whether the answer carries x-should-retry: false. The official SDKs retry 408, 409, 429 and
// 5xx; a refusal that does not change by itself must not be sent again.
func (r Reason) ShouldNotRetry() bool { return r.info().noRetry }

// Reasons lists every reason in the table's order.
func Reasons() []Reason {
	all := make([]Reason, reasonCount)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// ReasonOf finds a reason by its code.
func ReasonOf(code string) (Reason, bool) {
	for i := range reasons {
		if reasons[i].code == code {
			return Reason(i), true
		}
	}
	return Unanswered, false
}
