// Package keyfile reads a file of keys' hashes, the keys_file of a configuration.
// It refuses a file with a problem as a whole, and a key itself that stands in it, which it never repeats.
package keyfile

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/authn"
	"github.com/vallum/vallum/internal/identity"
)

// Problem is one thing that is wrong with a key file, where it stands, and what would be right. It never holds a
// value that could be a key.
type Problem struct {
	File   string
	Line   int // from 1
	Column int // from 1, in bytes
	What   string
	Right  string // "" when What says it
}

// String is the problem on one line, as compilers write theirs.
func (p Problem) String() string {
	s := fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.What)
	if p.Right != "" {
		s += "; want " + p.Right
	}
	return s
}

// Parse reads a key file: one key a line, the fields separated by blanks, # begins a comment.
//
//	# name  roles              SHA-256 of the key                 options
//	app     inference,monitor  9f86d081884c7d659a2feaa0c55ad0…    tenant=acme expires=2027-01-31
//
// The hash is that of the whole key without a line end (printf %s "$KEY" | sha256sum), in hexadecimal. Options:
// tenant; expires, a date (its first moment in UTC) or an RFC 3339 time. The id of such a key is "file:" and its name. A
// file with a problem has no keys: half of it is nobody's intention. Name is for the problems; nothing is opened.
func Parse(name string, b []byte) ([]authn.Key, []Problem) {
	p := reader{file: name, names: make(map[string]int), hashes: make(map[[sha256.Size]byte]int)}
	for i, line := range strings.Split(string(b), "\n") {
		p.line = i + 1
		if fields := fieldsOf(strings.TrimSuffix(line, "\r")); len(fields) > 0 {
			p.read(fields)
		}
	}
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	return p.keys, nil
}

// reader is a file while it is read.
type reader struct {
	file     string
	line     int
	keys     []authn.Key
	problems []Problem
	names    map[string]int            // where each stands
	hashes   map[[sha256.Size]byte]int // the same
}

// field is a word of a line and the column where it begins.
type field struct {
	text   string
	column int
}

// fieldsOf splits a line at blanks and ends it at the first word that begins with #.
func fieldsOf(line string) []field {
	var fields []field
	for i := 0; i < len(line); {
		if line[i] == ' ' || line[i] == '\t' {
			i++
			continue
		}
		end := i + strings.IndexAny(line[i:]+" ", " \t")
		if line[i] == '#' {
			break
		}
		fields = append(fields, field{line[i:end], i + 1})
		i = end
	}
	return fields
}

func (p *reader) say(f field, right, what string, args ...any) {
	p.problems = append(p.problems, Problem{File: p.file, Line: p.line, Column: f.column, What: fmt.Sprintf(what, args...), Right: right})
}

// read takes one key.
func (p *reader) read(fields []field) {
	if len(fields) < 3 {
		p.say(fields[0], "name, roles and SHA-256, separated by blanks", "%d of three fields", len(fields))
		return
	}
	before := len(p.problems)
	key := authn.Key{Name: fields[0].text, ID: "file:" + fields[0].text, Imported: true}
	p.name(fields[0], "the name")
	if at, twice := p.names[key.Name]; twice {
		p.say(fields[0], "a name of its own", "line %d has this name", at)
	}
	p.names[key.Name] = p.line
	for _, role := range strings.Split(fields[1].text, ",") {
		p.name(field{role, fields[1].column}, "a role")
		if slices.Contains(key.Roles, role) {
			p.say(fields[1], "", "a role stands twice")
		}
		key.Roles = append(key.Roles, role)
	}
	key.Hash = p.hash(fields[2])
	seen := make(map[string]bool)
	for _, option := range fields[3:] {
		p.option(&key, option, seen)
	}
	if len(p.problems) == before {
		p.keys = append(p.keys, key)
	}
}

// name checks a name, without repeating one that could be a key in the wrong column.
func (p *reader) name(f field, what string) {
	if !identity.IsName(f.text) {
		p.say(f, identity.NameWords, "%s is not a name", what)
	}
	if strings.HasPrefix(f.text, authn.KeyPrefix) {
		p.say(f, "the key's SHA-256, in the third field", "a key is written out")
	}
}

func (p *reader) hash(f field) (sum [sha256.Size]byte) {
	digits := strings.TrimPrefix(f.text, "sha256:")
	raw, err := hex.DecodeString(digits)
	if err != nil || len(raw) != len(sum) {
		p.say(f, "64 hexadecimal digits, the SHA-256 of the key: a key itself must not stand here", "not a SHA-256")
		return sum
	}
	copy(sum[:], raw)
	if sum == sha256.Sum256(nil) || sum == sha256.Sum256([]byte("\n")) || sum == [sha256.Size]byte{} {
		p.say(f, `the hash of the key: printf %s "$KEY" | sha256sum`, "this is the hash of nothing")
	}
	if at, twice := p.hashes[sum]; twice {
		p.say(f, "a key of its own for each line", "line %d has this key", at)
	}
	p.hashes[sum] = p.line
	return sum
}

func (p *reader) option(key *authn.Key, f field, seen map[string]bool) {
	name, value, _ := strings.Cut(f.text, "=")
	switch name {
	case "tenant":
		key.Tenant = value
		p.name(field{value, f.column}, "the tenant")
	case "expires":
		at, err := time.Parse(time.DateOnly, value)
		if err != nil {
			at, err = time.Parse(time.RFC3339, value)
		}
		if err != nil {
			p.say(f, "a date such as 2027-01-31, or a time such as 2027-01-31T12:00:00Z", "this is no time")
		}
		key.Expires = at
	default:
		p.say(f, "tenant=… or expires=…", "unknown option")
	}
	if seen[name] {
		p.say(f, "", "the option stands twice")
	}
	seen[name] = true
}
