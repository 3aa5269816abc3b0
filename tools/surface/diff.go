package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// diffFiles says which routes, models and fields came (+), went (-) or changed (~) from one file to another.
func diffFiles(before, after string) (string, error) {
	var pair [2]surface
	for i, name := range []string{before, after} {
		text, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		if pair[i], err = parse(text); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	a, b, w := pair[0], pair[1], &strings.Builder{}
	fmt.Fprintf(w, "%s -> %s\n", a.Release, b.Release)
	changed(w, "", "guarded prefixes", strings.Join(a.GuardedPrefixes, " "), strings.Join(b.GuardedPrefixes, " "))
	diffRoutes(w, a, b)
	diffModels(w, a, b)
	return w.String(), nil
}

func changed(w *strings.Builder, indent, what, before, after string) {
	if before != after {
		fmt.Fprintf(w, "%s~ %s: %q -> %q\n", indent, what, before, after)
	}
}

// sides calls each for every key of either map, in order; the pointers are nil where the key is missing.
func sides[V any](a, b map[string]V, each func(key string, x, y *V)) {
	keys := slices.Concat(slices.Collect(maps.Keys(a)), slices.Collect(maps.Keys(b)))
	slices.Sort(keys)
	for _, key := range slices.Compact(keys) {
		var x, y *V
		if v, ok := a[key]; ok {
			x = &v
		}
		if v, ok := b[key]; ok {
			y = &v
		}
		each(key, x, y)
	}
}

func diffRoutes(w *strings.Builder, a, b surface) {
	index := func(s surface) map[string]route {
		out := map[string]route{}
		for _, r := range s.Routes {
			key := r.Method + " " + r.Path
			if r.Server != "api" {
				key += " on " + r.Server
			}
			out[key] = r
		}
		return out
	}
	sides(index(a), index(b), func(key string, x, y *route) {
		switch {
		case x == nil:
			fmt.Fprintf(w, "+ %s  [%s] guarded=%t %s\n", key, strings.Join(y.Conditions, " | "), y.GuardedByKey, y.RequestModel)
		case y == nil:
			fmt.Fprintf(w, "- %s\n", key)
		default:
			changed(w, "", key+" conditions", strings.Join(x.Conditions, " | "), strings.Join(y.Conditions, " | "))
			changed(w, "", key+" guarded", fmt.Sprint(x.GuardedByKey), fmt.Sprint(y.GuardedByKey))
			changed(w, "", key+" model", x.RequestModel, y.RequestModel)
			changed(w, "", key+" body", x.RequestKind, y.RequestKind)
			changed(w, "", key+" query", strings.Join(x.Query, " "), strings.Join(y.Query, " "))
			changed(w, "", key+" headers", strings.Join(x.Headers, " "), strings.Join(y.Headers, " "))
		}
	})
}

func diffModels(w *strings.Builder, a, b surface) {
	sides(a.Models, b.Models, func(key string, x, y *model) {
		switch {
		case x == nil:
			fmt.Fprintf(w, "+ model %s (%s, extra %s)\n", key, y.Kind, y.Extra)
			diffFields(w, model{}, *y)
		case y == nil:
			fmt.Fprintf(w, "- model %s\n", key)
		default:
			var lines strings.Builder
			changed(&lines, "  ", "extra", x.Extra, y.Extra)
			changed(&lines, "  ", "members", strings.Join(x.Members, " | "), strings.Join(y.Members, " | "))
			changed(&lines, "  ", "also reads", strings.Join(x.AlsoRead, " "), strings.Join(y.AlsoRead, " "))
			diffFields(&lines, *x, *y)
			if lines.Len() > 0 {
				fmt.Fprintf(w, "~ model %s\n%s", key, lines.String())
			}
		}
	})
}

func diffFields(w *strings.Builder, a, b model) {
	index := func(m model) map[string]field {
		out := map[string]field{}
		for _, f := range m.Fields {
			out[f.Name] = f
		}
		return out
	}
	sides(index(a), index(b), func(key string, x, y *field) {
		switch {
		case x == nil:
			fmt.Fprintf(w, "  + %s: %s\n", key, y.text())
		case y == nil:
			fmt.Fprintf(w, "  - %s\n", key)
		default:
			changed(w, "  ", key, x.text(), y.text())
		}
	})
}

// text is a field as Python would write it.
func (f field) text() string {
	out := f.Annotation
	if f.Default != nil {
		out += " = " + *f.Default
	}
	if f.Bounds != "" {
		out += " (" + f.Bounds + ")"
	}
	if len(f.Aliases) > 0 {
		out += " alias " + strings.Join(f.Aliases, ", ")
	}
	return out
}
