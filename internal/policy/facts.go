// Package policy decides: who may do which operation on which model, and what has to change in the request.
// It refuses by default: the zero Policy grants nothing and the zero Grant is not valid.
package policy

import (
	"slices"

	"github.com/vallum/vallum/internal/vllm"
)

// Facts is what inspect read from a request, all that a decision may hang on.
// A request without a body has the zero Facts.
type Facts struct {
	Model       string   // the model asked for; "" when absent, null or empty
	Upstream    string   // the X-Vallum-Upstream header; "" when absent
	Stream      bool     // the answer is to be a stream
	Usage       bool     // the caller asked for usage in the stream
	OutputCap   int64    // most output tokens asked for, per choice; 0 when the request has no cap
	CapField    string   // the field that holds OutputCap, or the one to inject a cap into; "" when the operation has none
	Choices     int64    // answers per prompt; at least 1
	Inputs      int64    // prompts, texts or documents; at least 1
	BodyBytes   int64    // the body's length: with one token per byte at most, a bound on the input's tokens
	Shared      int64    // bytes of it that every run of the model gets, whatever the inputs: a query; of a form, its text
	Media       int64    // pictures, films and sounds in a JSON body: no count of bytes bounds their tokens
	HasSalt     bool     // the operation's table has a cache_salt
	HasOptions  bool     // the operation's table has stream_options
	HasUsage    bool     // the operation's table has stream_include_usage, as a form asks
	HasStore    bool     // the operation's table has store
	UnknownKeys []string // JSON pointers of fields that are in no table; dropped unless the role refuses them
	Dropped     []string // JSON pointers of fields that the catalogue drops
	Audio       bool     // there is sound in the body
	Hazards     []Hazard // fields that do harm in some releases
}

// Hazard is a field of the request that only some releases of vLLM may get.
type Hazard struct {
	Pointer string
	Field   *vllm.Field // its Affected says which may not
}

// In reports whether the field does harm on a server of the release; audio: there is sound in the body.
func (h Hazard) In(r vllm.Release, audio bool) bool {
	return h.Field.Affected.In(r) && (audio || !h.Field.Affected.WithAudio)
}

// Endanger notes a field that does harm in some releases, each row of the tables once.
func (f *Facts) Endanger(field *vllm.Field, pointer string) {
	if !slices.ContainsFunc(f.Hazards, func(h Hazard) bool { return h.Field == field }) {
		f.Hazards = append(f.Hazards, Hazard{Pointer: pointer, Field: field})
	}
}

// Edit is one named change of the body. The body that goes up is the caller's bytes with these splices.
type Edit struct {
	Name    string // for the record: "model", "cache_salt", "store", "output_cap", "include_usage"
	Pointer string // JSON pointer of the member to set: "/model", "/stream_options/include_usage", "/stream_include_usage"; one or two names
	Value   string // the JSON literal to write
}
