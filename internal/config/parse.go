package config

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// SecretInFile is said of a secret that stands in the file itself; the line is then not shown.
const SecretInFile = "a secret must not stand in this file"

// maxFile bounds a configuration's bytes.
const maxFile = 4 << 20

// Parse reads a configuration. The error is a *Problems with everything that is wrong, or nil.
func Parse(name string, b []byte) (*Config, error) {
	c, d, p := decodeFile(name, b)
	if d == nil {
		return nil, p
	}
	c.checkDecoded(d)
	if len(d.problems) > 0 {
		p.List = d.problems
		p.sort()
		return nil, p
	}
	c.Defaults()
	return c, nil
}

// Locate gives problems that were found elsewhere, such as files that are not there, their places in the file: what
// stands at their Path, or nearest above it. The text is that of a file that Parse takes.
func Locate(name string, b []byte, found []Problem) *Problems {
	_, d, p := decodeFile(name, b)
	if d == nil {
		return p
	}
	d.problems = nil
	for _, one := range found {
		d.at(one.Path, one.What, one.Right)
	}
	p.List = d.problems
	p.sort()
	return p
}

// decodeFile decodes the one document of a file, without judging what it says. The decoder is nil when there is none to
// judge: then p has the problem.
func decodeFile(name string, b []byte) (c *Config, d *decoder, p *Problems) {
	p = &Problems{File: name, text: strings.Split(string(b), "\n")}
	if len(b) > maxFile {
		p.List = append(p.List, Problem{Line: 1, Column: 1, Path: "file", What: "is larger than 4 MiB", Right: "a configuration"})
		return nil, nil, p
	}
	var doc yaml.Node
	if err := yaml.Load(b, &doc); err != nil {
		p.List = append(p.List, syntaxProblem(err, p.text))
		return nil, nil, p
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		// It may be another file, with a secret on its one line.
		p.List = append(p.List, Problem{Line: 1, Column: 1, Path: "file", What: "is not a mapping", Right: "version: 1 and what follows", hide: 1})
		return nil, nil, p
	}
	c, d = &Config{}, &decoder{where: map[string]*yaml.Node{}}
	d.value(doc.Content[0], "", reflect.ValueOf(c).Elem())
	return c, d, p
}

// checkDecoded judges what was decoded. Where decoding itself found a problem the value is missing, and what follows
// from that is not told again.
func (c *Config) checkDecoded(d *decoder) {
	decoded := d.problems
	d.problems = nil
	c.check(d)
	judged := d.problems
	d.problems = decoded
	for _, p := range judged {
		if !slices.ContainsFunc(decoded, func(q Problem) bool { return within(q.Path, p.Path) || within(p.Path, q.Path) }) {
			d.problems = append(d.problems, p)
		}
	}
}

// within reports whether a path is another, or below it.
func within(path, above string) bool {
	rest, ok := strings.CutPrefix(path, above)
	return ok && (rest == "" || strings.ContainsRune(".[", rune(rest[0])))
}

// syntaxProblem finds the position that the YAML reader told, if it told one. Of the line no value is shown: nobody knows
// what it is.
func syntaxProblem(err error, text []string) Problem {
	if strings.TrimSpace(strings.Join(text, "")) == "" {
		return Problem{Line: 1, Column: 1, Path: "file", What: "is empty", Right: "version: 1 and what follows"}
	}
	one := Problem{Line: 1, Column: 1, Path: "file", What: err.Error(), Right: "one YAML document"}
	var many *yaml.LoadErrors
	var load *yaml.LoadError
	if errors.As(err, &many) && len(many.Errors) > 0 {
		load = many.Errors[0]
	} else {
		errors.As(err, &load)
	}
	if load != nil {
		one.What = load.Message
		one.Line, one.Column = max(load.Mark.Line, 1), max(load.Mark.Column, 1)
	}
	one.What = strings.TrimPrefix(one.What, "yaml: ")
	for _, misses := range missing {
		if strings.Contains(one.What, misses[0]) {
			one.Right = misses[1]
		}
	}
	if one.Line <= len(text) && strings.Contains(indentOf(text[one.Line-1]), "\t") {
		one.What, one.Right = "a tab in the indent, which YAML does not take", "spaces"
		one.Column = strings.IndexByte(text[one.Line-1], '\t') + 1
	}
	if one.Line <= len(text) {
		if key, _, found := strings.Cut(text[one.Line-1], ":"); found {
			one.hide = utf8.RuneCountInString(key) + 2
		}
	}
	return one
}

// missing are what the YAML reader says that it did not find, and what that means to who wrote the file.
var missing = [][2]string{
	{"expected key", "an indent as the keys beside it have"},
	{"expected '-' indicator", "an indent as the items beside it have"},
	{"expected ',' or ']'", "a ] that ends the list begun above"},
	{"expected ',' or '}'", "a } that ends the mapping begun above"},
	{"mapping values are not allowed", "an indent as the keys beside it have, or the value in quotes"},
}

// indentOf is what stands before the first word of a line.
func indentOf(line string) string { return line[:len(line)-len(strings.TrimLeft(line, " \t"))] }

// at says a problem at the path, or at the nearest thing above it that stands in the file.
func (d *decoder) at(path, what, right string) {
	full := path
	for {
		if n, ok := d.where[path]; ok {
			d.say(n, full, what, right)
			return
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			d.problems = append(d.problems, Problem{Line: 1, Column: 1, Path: full, What: what, Right: right})
			return
		}
		path = path[:cut]
	}
}
