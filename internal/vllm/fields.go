package vllm

// Table is what may stand in the body of an operation. The tables are the text files in fields/, in the language that
// tables.go describes; docs/operations.md is generated from them. The fields of a form are the fields of Body, each
// value being the text that a JSON value of that shape would be, without quotes for strings; a field whose shape is
// an Array may stand several times.
type Table struct {
	Operations []string // the operations that share this table
	Body       *Shape   // the shape of the whole body: an Object
}

// Kind is the JSON kind, narrowed where vLLM's pydantic models would coerce. An Integer always has bounds: at least
// those of int64, which vLLM's own fields have and Python's integers have not.
type Kind uint8

// The kinds. The zero Kind accepts nothing.
const (
	NoKind  Kind = iota
	String       // a JSON string
	Integer      // an integer literal, or N.0, which is sent up as N
	Number       // any JSON number
	Boolean      // true or false: never 0, 1 or "yes" (pydantic would take them)
	Object       // members by Fields; what Fields does not name is unknown
	Array        // of Elem
	Map          // any member names, values of Elem (names limited to Names when it is not empty)
	Union        // the first of Any whose JSON kind fits (kinds do not overlap, but for Integer and Number)
	Choice       // an object whose shape is chosen by the string member Tag
	Free         // any JSON: no field rules inside, nulls stay; only the bounds on depth and size
	File         // forms only: the part that carries a file; never a JSON value
)

// Shape is what a JSON value may be. null always equals absent: it is removed, and counts as absent for caps.
type Shape struct {
	Name     string // of Object and Choice shapes, for messages and the docs
	Kind     Kind
	Min, Max int64             // Integer and Number: the range, inclusive, when Bounded
	Bounded  bool              // Min and Max hold
	MinLen   int64             // Array: elements at least
	MaxLen   int64             // String: bytes of its UTF-8; Array, Map: elements; 0 is no bound of its own. In an Array of a Union with Integer only what is no number counts: a list of token ids is one prompt
	Enum     []string          // String: the accepted values; nil is any
	Schema   bool              // Free: a JSON schema, of which vLLM may make a grammar
	Text     bool              // Free: such a schema may also be the text of one
	DataURL  bool              // String: must be a data: URL (RFC 2397): vLLM would fetch anything else
	Medium   Medium            // String: a data: URL of such a file, or its base64 alone when DataURL is false; "" for neither
	Fields   map[string]*Field // Object
	Needed   []string          // Object: the fields without which vLLM refuses it, by name
	Elem     *Shape            // Array, Map
	Names    []string          // Map: the accepted member names; nil is any
	Any      []*Shape          // Union: no union inside, and each arm has another JSON kind
	Tag      string            // Choice: the member that chooses; absent or null chooses the variant ""
	Variants map[string]*Field // Choice: tag value → what to do with such an object; "*" is any other value; both are always there. Dropped in an Array, the element goes. The member Tag is a field of each variant's shape, which may be one more Choice
}

// Medium is what a file is that stands in a body.
type Medium string

// The media.
const (
	Picture Medium = "picture"
	Sound   Medium = "sound"
)

// Strange is what is to be said of a file that none of a medium's usual kinds is, and where it does harm.
func (m Medium) Strange() *Field { return strange[m] }

var strange = map[Medium]*Field{
	Picture: {
		Name: "picture", Action: Pass, Affected: &Affected{Until: "0.32.0"},
		Why: "not PNG, JPEG, GIF, WebP, BMP, TIFF or AVIF: before 0.32 vLLM gives it to all of Pillow's readers, one of which runs Ghostscript",
	},
	Sound: {
		Name: "sound", Action: Pass, Affected: &Affected{Until: "0.29.0"},
		Why: "not WAV, FLAC, Ogg, WebM, MP3 or AAC: before 0.29 FFmpeg's reader of Immersive Audio writes past its memory (GHSA-m52c-39rh-f3gp)",
	},
}

// Action is what becomes of a field that is present and not null.
type Action uint8

// The actions. The zero Action refuses.
const (
	Refuse Action = iota // 403 forbidden_parameter, unless the value equals one of Equal: then it is dropped
	Drop                 // removed, and named in the record: a hint that vLLM ignores, or that must not reach it
	Pass                 // checked against its shape and sent as it stands
	Write                // the gateway writes its own value over it (model, cache_salt, store); the caller's never passes
)

// Field is one row of a table.
type Field struct {
	Name   string
	Action Action
	Shape  *Shape   // nil for Drop and Refuse: any value. For Write, what the caller may have sent
	Equal  []string // Refuse and Affected: JSON literals that equal vLLM's default, compared after compaction
	Fact   Fact     // what the gateway learns from the value
	Reason string   // a Reason's code when the refusal is not forbidden_parameter ("thread_unsupported")
	Why    string   // one sentence for the reviewer, the docs and the refusal's sentence
	Needed bool     // Pass: vLLM refuses an object without it, and what that costs is why it is refused before

	Affected *Affected // Pass: where a value other than those of Equal does harm; nil for nowhere
}

// Affected are the releases of vLLM in which a field does harm: an advisory that the field's Why names.
type Affected struct {
	From      string // the first of them; "" for all that are older than Until
	Until     string // the first that is well again
	WithAudio bool   // only when the request holds sound
	Known     bool   // only where the release is known: so many send it that nobody could use a server of an unknown one
	With      string // only beside this field of the same body, when that says anything but 0; "" for always
}

// In reports whether the field does harm in the release: what is not known is, but where that would take too much away.
func (a *Affected) In(r Release) bool {
	return !r.known && !a.Known || r.known && within(r, a.From, "") && r.Compare(mustRelease(a.Until)) < 0
}

// Fact is what a field tells the gateway.
type Fact uint8

// The facts. A table names them by the words in factNames.
const (
	NoFact           Fact = iota
	FactModel             // the model that is asked for
	FactStream            // whether the answer is a stream
	FactIncludeUsage      // stream_options.include_usage
	FactOutputCap         // most tokens to generate; the smallest of several wins
	FactChoices           // n: answers per prompt
	FactInputs            // the prompts, texts, documents or token ids: their number counts
	FactSalt              // the field exists for a cache salt
	FactStore             // responses: whether to keep the answer on the server
	FactTools             // tools are offered
	FactAudio             // the request holds sound
	FactMedia             // the request holds a picture or the like, which is no data: URL
	FactQueries           // FactInputs, each with many others: a single one stands in every run of the model
	FactShared            // text that stands in every run of the model, whatever the inputs
	FactEnd               // how many facts there are
)
