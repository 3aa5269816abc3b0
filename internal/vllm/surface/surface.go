// Package surface holds what the released vLLM wheels serve over HTTP and read from requests, as the extractor in
// tools/surface wrote it. It refuses to judge: what is allowed, dangerous or worth a name is the catalogue's business,
// and a release's file is never edited by hand.
//
// Only the newest release is in the binary. Tests read the others with package all.
package surface

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

//go:embed 0.33.0.json
var newest []byte

// Release is everything that was read of one vLLM release.
type Release struct {
	// Version is the release's number, such as "0.32.0".
	Version string `json:"release"`
	// Wheel is the file name of the wheel that was read.
	Wheel string `json:"wheel"`
	// HostingStandards is the version of model-hosting-container-standards that was read along, which registers
	// /ping, /invocations and /adapters; "" when the release does not use it.
	HostingStandards string `json:"hosting_standards"`
	// GuardedPrefixes are the path prefixes that vLLM's own key check covers, compared as strings, sorted.
	GuardedPrefixes []string `json:"guarded_prefixes"`
	// Env and Flags are the environment variables and command line flags that decide whether some route exists.
	Env   []string `json:"env"`
	Flags []string `json:"flags"`
	// Middleware lists what runs before the routes of the API server.
	Middleware []Middleware `json:"middleware"`
	// Routes are sorted: the API server's first, then by server, path and method.
	Routes []Route `json:"routes"`
	// Models are the request models by name, with everything that their annotations reach.
	Models map[string]Model `json:"models"`
	// ExternalTypes are types that annotations name and whose fields are not in Models, because another package defines
	// them or because they are not data: the name as annotations use it, to the dotted Python name.
	ExternalTypes map[string]string `json:"external_types"`
	// Unresolved is what could not be read statically: since 0.11 at least what plugins and hosting may add.
	Unresolved []Unresolved `json:"unresolved"`
}

// Middleware is code that sees every request of the API server before its route does.
type Middleware struct {
	Name string `json:"name"`
	// Condition is when it is installed, in the words of Route.Conditions.
	Condition string `json:"condition"`
	Source    string `json:"source"`
	// Headers are the request headers it reads, in lower case.
	Headers []string `json:"headers"`
}

// Route is one method and path of one server.
type Route struct {
	// Server is "api" for the main port of `vllm serve`; every other value is a server on a port of its own.
	Server string `json:"server"`
	// Method is an HTTP method, "WEBSOCKET", or "ANY" for a mount.
	Method string `json:"method"`
	// Path is the template as registered: "{name}" is one segment; a path of kind "wildcard" ends in "/*".
	Path string `json:"path"`
	// Kind is "http", "websocket", "mount" (every path that begins with Path, /metricsfoo included) or "wildcard".
	Kind string `json:"kind"`
	// Conditions are the independent ways in which the route comes to be, any of which is enough: "always",
	// "task:generate and flag --tokens-only", "env VLLM_SERVER_DEV_MODE=1", … One that ends in
	// ": stub answering 403" registers the path with a handler that only refuses.
	Conditions []string `json:"conditions"`
	// GuardedByKey says whether Path begins with one of the release's GuardedPrefixes.
	GuardedByKey bool `json:"guarded_by_key"`
	// Sources are the files that register it.
	Sources []string `json:"sources"`
	// RequestKind is "json", "form" or "none".
	RequestKind string `json:"request_kind"`
	// RequestModel is a key of Release.Models, or "" when there is no body or nothing is known of it.
	RequestModel string `json:"request_model,omitempty"`
	// Query holds the query parameters that the handler reads.
	Query []string `json:"query,omitempty"`
	// Headers holds the request headers that the handler reads, in lower case, as far as its calls can be followed.
	Headers []string `json:"headers,omitempty"`
}

// Model is a type that a request body, or a part of one, is read into.
type Model struct {
	// Source is the file that defines it.
	Source string `json:"source"`
	// Kind is "pydantic", "typed_dict", "dataclass", "struct" (msgspec), "named_tuple", "enum", "union" (also every
	// other named alias of a type), or "raw" for a body that the handler reads key by key.
	Kind string `json:"kind"`
	// ExternalBases are base classes outside the release, whose fields are not in Fields.
	ExternalBases []string `json:"external_bases,omitempty"`
	// Extra is what happens to fields that are not declared: "ignore", "allow" (kept) or "forbid". "" where the
	// question does not arise.
	Extra string `json:"extra,omitempty"`
	// Members are the alternatives of a union, or the values of an enum.
	Members []string `json:"members,omitempty"`
	// Bounds are the declared limits of an alias, in the words of Field.Bounds.
	Bounds string `json:"bounds,omitempty"`
	// Fields are in the order of declaration, inherited ones first.
	Fields []Field `json:"fields,omitempty"`
	// AlsoReads are names that a validator takes from the body although no field declares them.
	AlsoReads []string `json:"also_reads,omitempty"`
}

// Field is one field of a Model.
type Field struct {
	Name string `json:"name"`
	// Annotation is the Python type, without prose; "" when the body is read key by key and no type is stated.
	Annotation string `json:"annotation"`
	// Required says that vLLM refuses a body without it.
	Required bool `json:"required,omitempty"`
	// Default is the Python expression of the default; "" when there is none or it is not known.
	Default string `json:"default,omitempty"`
	// Aliases are other names that the field is read from.
	Aliases []string `json:"aliases,omitempty"`
	// Bounds are the declared limits, such as "ge=0, le=2".
	Bounds string `json:"bounds,omitempty"`
}

// Unresolved is something that the extractor saw and could not read.
type Unresolved struct {
	// Kind is "call", "condition", "depth", "file", "guard", "header", "model",
	// "name", "path", "plugin", "query", "route" or "server".
	Kind string `json:"kind"`
	// At is file:line.
	At   string `json:"at"`
	Text string `json:"text"`
}

// Newest is the newest release that was read. All callers share the value and must not change it.
func Newest() *Release { return parsed() }

var parsed = sync.OnceValue(func() *Release {
	r, err := Parse(newest)
	if err != nil {
		panic("surface: the embedded release: " + err.Error()) // a build that its own tests refuse
	}
	return r
})

// Parse reads a release's file. Unknown keys, trailing data and a file that names no release are errors.
func Parse(text []byte) (*Release, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var r Release
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("surface: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("surface: data after the release")
	}
	if r.Version == "" {
		return nil, fmt.Errorf("surface: names no release; want %q", "release")
	}
	return &r, nil
}
