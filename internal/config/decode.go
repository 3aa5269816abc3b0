package config

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// decoder fills a Config from the nodes of a YAML document. It goes on after a problem, so that all are told at once,
// and knows where each value stands. The library's own decoding stops at types and tells no column.
type decoder struct {
	problems []Problem
	where    map[string]*yaml.Node // path → the value's node
}

func (d *decoder) say(n *yaml.Node, path, what, right string) {
	p := Problem{Line: n.Line, Column: n.Column, Path: path, What: what, Right: right}
	if what == SecretInFile {
		p.hide = n.Column
	}
	d.problems = append(d.problems, p)
}

func (d *decoder) value(n *yaml.Node, path string, into reflect.Value) {
	d.where[path] = n
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.say(n, path, "anchors and aliases are refused: what is granted must stand where it is read", "the value written out")
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // absent
	}
	switch into.Interface().(type) {
	case Duration:
		d.parsed(n, path, into, func(s string) (any, error) { return parseDuration(s) })
		return
	case Size:
		d.parsed(n, path, into, func(s string) (any, error) { return parseSize(s) })
		return
	case Count:
		d.parsed(n, path, into, func(s string) (any, error) { return parseCount(s) })
		return
	case Secret:
		before := len(d.problems)
		d.parsed(n, path, into, func(s string) (any, error) { return parseSecret(s) })
		for i := range d.problems[before:] {
			d.problems[before+i].hide = n.Column
		}
		return
	case Operation:
		if n.Kind == yaml.ScalarNode {
			into.Set(reflect.ValueOf(Operation{ID: n.Value}))
			return
		}
	}
	switch into.Kind() {
	case reflect.Pointer:
		into.Set(reflect.New(into.Type().Elem()))
		d.value(n, path, into.Elem())
	case reflect.Struct:
		d.object(n, path, into)
	case reflect.Map:
		d.mapping(n, path, into)
	case reflect.Slice:
		d.list(n, path, into)
	default:
		d.scalar(n, path, into)
	}
}

func (d *decoder) object(n *yaml.Node, path string, into reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.say(n, path, "is not a mapping", "keys: "+strings.Join(keysOf(into.Type()), ", "))
		return
	}
	d.members(n, path, func(key, value *yaml.Node) {
		for i := range into.NumField() {
			if into.Type().Field(i).Tag.Get("yaml") == key.Value {
				d.value(value, join(path, key.Value), into.Field(i))
				return
			}
		}
		d.say(key, join(path, key.Value), "there is no such key", nearest(key.Value, keysOf(into.Type())))
		if value.Line == key.Line {
			d.problems[len(d.problems)-1].hide = value.Column // api_key: sk-…
		}
	})
}

func (d *decoder) mapping(n *yaml.Node, path string, into reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.say(n, path, "is not a mapping", "NAME: value, one a line")
		return
	}
	into.Set(reflect.MakeMap(into.Type()))
	d.members(n, path, func(key, value *yaml.Node) {
		v := reflect.New(into.Type().Elem()).Elem()
		d.value(value, join(path, key.Value), v)
		if v.Kind() == reflect.Struct {
			d.where[join(path, key.Value)] = key // what is wrong with all of it stands at its name
		}
		into.SetMapIndex(reflect.ValueOf(key.Value), v)
	})
}

// members visits the pairs of a mapping; a key that stands twice is a problem, for one of the two would be lost.
func (d *decoder) members(n *yaml.Node, path string, visit func(key, value *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if line, twice := seen[key.Value]; twice {
			d.say(key, join(path, key.Value), fmt.Sprintf("stands on line %d already", line), "one of them")
			continue
		}
		if key.Value == "<<" {
			d.say(key, path, "merge keys are refused: what is granted must stand where it is read", "the keys written out")
			continue
		}
		seen[key.Value] = key.Line
		visit(key, value)
	}
}

func (d *decoder) list(n *yaml.Node, path string, into reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.say(n, path, "is not a list", "[a, b], or one \"- item\" a line")
		return
	}
	for i, item := range n.Content {
		v := reflect.New(into.Type().Elem()).Elem()
		d.value(item, fmt.Sprintf("%s[%d]", path, i), v)
		into.Set(reflect.Append(into, v))
	}
}

func (d *decoder) scalar(n *yaml.Node, path string, into reflect.Value) {
	if n.Kind != yaml.ScalarNode {
		d.say(n, path, "is not a single value", "a "+into.Kind().String())
		return
	}
	switch into.Kind() {
	case reflect.String:
		into.SetString(n.Value)
	case reflect.Bool:
		if n.Value != "true" && n.Value != "false" {
			d.say(n, path, fmt.Sprintf("%q is neither true nor false", n.Value), "true or false")
			return
		}
		into.SetBool(n.Value == "true")
	case reflect.Int, reflect.Int64:
		v, err := strconv.ParseInt(strings.ReplaceAll(n.Value, "_", ""), 10, 64)
		if err != nil || v < 0 {
			d.say(n, path, fmt.Sprintf("%q is not a whole number from 0", n.Value), "such as 600 or 200_000")
			return
		}
		into.SetInt(v)
	}
}

func (d *decoder) parsed(n *yaml.Node, path string, into reflect.Value, parse func(string) (any, error)) {
	if n.Kind != yaml.ScalarNode {
		d.say(n, path, "is not a single value", "one value")
		return
	}
	v, err := parse(n.Value)
	if err != nil {
		what, right, _ := strings.Cut(err.Error(), " | ")
		d.say(n, path, what, right)
		return
	}
	into.Set(reflect.ValueOf(v))
}

func parseDuration(s string) (Duration, error) {
	bad := fmt.Errorf("%q is not a length of time | 90s, 15m, 24h or 90d", s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 64)
		if err != nil || n <= 0 || n > 36500 {
			return 0, bad
		}
		return Duration(time.Duration(n) * 24 * time.Hour), nil
	}
	t, err := time.ParseDuration(s)
	if err != nil || t <= 0 {
		return 0, bad
	}
	return Duration(t), nil
}

// ParseDuration reads a length of time as vallum.yaml writes it: 90s, 15m, 24h or 90d.
func ParseDuration(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err != nil {
		what, right, _ := strings.Cut(err.Error(), " | ")
		return 0, fmt.Errorf("%s: write %s", what, right)
	}
	return time.Duration(d), nil
}

func parseSize(s string) (Size, error) {
	digits, unit := s, int64(1)
	for suffix, factor := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			digits, unit = strings.TrimSpace(rest), factor
		}
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(digits, "_", ""), 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is not a size | 1000, 64KiB, 8MiB or 2GiB", s)
	}
	return Size(n * unit), nil
}

func parseCount(s string) (Count, error) {
	n, err := strconv.ParseInt(strings.ReplaceAll(s, "_", ""), 10, 64)
	switch {
	case err == nil && n == 0:
		return 0, errors.New("0 would be no limit | 1 or more, or leave the key out")
	case err != nil || n < 0:
		return 0, fmt.Errorf("%q is not a whole number from 1 | such as 600 or 200_000", s)
	}
	return Count(n), nil
}

func parseSecret(s string) (Secret, error) {
	inner, open := strings.CutPrefix(s, "${")
	inner, shut := strings.CutSuffix(inner, "}")
	from, name, colon := strings.Cut(inner, ":")
	if !open || !shut || !colon || name == "" || from != "env" && from != "credential" {
		return Secret{}, errors.New(SecretInFile + " | ${env:NAME}, ${credential:NAME} (systemd), or key_file: PATH")
	}
	return Secret{From: from, Name: name}, nil
}

func keysOf(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		keys = append(keys, t.Field(i).Tag.Get("yaml"))
	}
	return keys
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
