package vllm

import (
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"sync"
)

// The tables are lines of text, so that a reviewer reads them in columns and a diff shows one field per line:
//
//	# a comment, to the end of the line
//	type NAME = TYPE                         a name for a type
//	rows NAME                                rows that several shapes share
//	shape NAME                               an object
//	body OPERATION [OPERATION …]             the whole body of these operations
//	  include NAME                           the rows of NAME
//	  FIELD TYPE pass [fact=F] [needed] -- why
//	                                         checked, and sent as it stands; needed: an object without it is refused
//	  FIELD TYPE pass affected=FROM..UNTIL [known] [with=audio|FIELD] [equal=JSON[,JSON]] -- why
//	                                         refused where FROM <= vLLM < UNTIL, or, without known, nobody knows; FROM may be left out
//	  FIELD TYPE write [fact=F] -- why       the gateway writes its own value
//	  FIELD - drop -- why                    removed, and named in the record
//	  FIELD - refuse [equal=JSON[,JSON]] [reason=CODE] -- why
//	choice NAME by TAG                       an object whose shape the string member TAG chooses
//	  VALUE[,VALUE] SHAPE pass -- why        "" is for an absent tag, * for any other: both have to be there
//	  VALUE[,VALUE] - drop|refuse [reason=CODE] -- why
//
// A TYPE is string, string(BYTES), enum(word word), data (a data: URL), picture, sound (data: URLs of such files), base64(picture), base64(sound), bool, int, int(LOW..HIGH), number,
// number(LOW..HIGH), free (any JSON), schema (a JSON schema), schematext (the same, or its text), file (forms), [TYPE], [TYPE](MOST), [TYPE](LEAST..MOST), {TYPE} (any names), {TYPE: name name}, a
// NAME, or several of these between bars: string|[string]. Either end of a range may be left out. null always counts
// as absent, and needs no notation. An object's fields are listed; a field that is not is unknown.
//
//go:embed fields/*.txt
var tableFiles embed.FS

// factNames are the words after fact= in the tables.
var factNames = map[string]Fact{
	"model": FactModel, "stream": FactStream, "include_usage": FactIncludeUsage,
	"output_cap": FactOutputCap, "choices": FactChoices, "inputs": FactInputs, "salt": FactSalt, "store": FactStore,
	"tools": FactTools, "audio": FactAudio, "media": FactMedia, "queries": FactQueries, "shared": FactShared,
}

// actionNames are the words of the action column.
var actionNames = map[string]Action{"refuse": Refuse, "drop": Drop, "pass": Pass, "write": Write}

// tableSet is all the tables, as parsed.
type tableSet struct {
	tables []*Table          // in the order of their files
	byID   map[string]*Table // by operation
	shapes []*Shape          // the named shapes, in the order of their files
	origin map[*Shape]string // a shape's file and line
}

// embeddedTables parses the embedded tables once. A mistake in them is a defect of this program, which a test finds:
// it panics rather than serve with half a table.
var embeddedTables = sync.OnceValue(func() *tableSet {
	set, err := parseTables(tableFiles)
	if err != nil {
		panic(fmt.Sprintf("vllm: the embedded field tables: %v", err))
	}
	return set
})

// FieldsOf returns the table of an operation's body. The second result is false for an operation that has none: it
// takes no body, or cannot be granted. The table is shared and must not be changed.
func FieldsOf(operationID string) (*Table, bool) {
	t, ok := embeddedTables().byID[operationID]
	return t, ok
}

// Tables returns all the tables, in the order of their files. They are shared and must not be changed.
func Tables() []*Table {
	return slices.Clone(embeddedTables().tables)
}

// parseTables reads every *.txt file in the folder fields of files. Its error joins all mistakes, each with file and
// line.
func parseTables(files fs.FS) (*tableSet, error) {
	names, err := fs.Glob(files, "fields/*.txt")
	if err != nil {
		return nil, fmt.Errorf("listing the field tables: %w", err)
	}
	p := newTableParser()
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("reading %q: %w", name, err)
		}
		p.read(name, string(text))
	}
	return p.resolve()
}
