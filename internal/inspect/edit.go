package inspect

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/inspect/scan"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/spare"
)

// setting is an edit for one member of an object; kids are edits inside it.
type setting struct {
	name  string
	value string // the JSON literal; "" when kids say it
	why   string
	kids  []setting
}

// rewrite makes the body that goes up.
func (d *document) rewrite(edits []policy.Edit) (Body, error) {
	settings, err := group(edits)
	if err != nil {
		return Body{}, err
	}
	changes, err := d.changes(make([]Change, 0, len(settings)+len(d.cuts)+4), d.open, d.top, settings)
	if err != nil {
		return Body{}, err
	}
	changes = merge(append(changes, d.cuts...))
	lies := splice(d.body, changes)
	body := lies.B
	return Body{ContentType: "application/json", Bytes: body, Reader: bytes.NewReader(body), Length: int64(len(body)), Changes: changes, buffer: lies}, nil
}

// group collects the edits by member. A later edit of the same member wins.
func group(edits []policy.Edit) ([]setting, error) {
	all := make([]setting, 0, len(edits))
	for _, e := range edits {
		outer, inner, ok := names(e.Pointer)
		if !ok || !scan.IsPlain(e.Value) && !jsontext.Value(e.Value).IsValid() {
			return nil, fmt.Errorf("edit %q: %q must name a member of the body, or a member of that, and the value must be JSON", e.Name, e.Pointer)
		}
		at := place(&all, outer)
		if inner != nil {
			at.why, at.value = e.Name, ""
			at = place(&at.kids, *inner)
		}
		at.value, at.why, at.kids = e.Value, e.Name, nil
	}
	return all, nil
}

// names are what a pointer to a member of the body, or to a member of that, names; inner is nil for the former.
func names(pointer string) (outer string, inner *string, ok bool) {
	if plain := strings.TrimPrefix(pointer, "/"); len(plain) < len(pointer) && !strings.ContainsAny(plain, "/~") {
		return plain, nil, true // what nearly all edits are
	}
	all := slices.Collect(jsontext.Pointer(pointer).Tokens())
	switch {
	case !jsontext.Pointer(pointer).IsValid() || len(all) == 0 || len(all) > 2:
		return "", nil, false
	case len(all) == 2:
		return all[0], &all[1], true
	}
	return all[0], nil, true
}

// place is the setting with a name, made when it is missing.
func place(list *[]setting, name string) *setting {
	i := slices.IndexFunc(*list, func(s setting) bool { return s.name == name })
	if i < 0 {
		i = len(*list)
		*list = append(*list, setting{name: name})
	}
	return &(*list)[i]
}

// changes are those of one object: its '{' ends at open.
func (d *document) changes(all []Change, open int, list []member, settings []setting) ([]Change, error) {
	settings = slices.Clone(settings)
	var seq sequence
	for _, m := range list {
		i := slices.IndexFunc(settings, func(s setting) bool { return d.isNamed(m, s.name) })
		if i < 0 && m.with == "" {
			seq.add(&all, m.start, m.end, m.why)
			if m.why == "" {
				all, _ = d.changes(all, 0, m.kids, nil)
			}
			continue
		}
		seq.add(&all, m.start, m.end, "")
		if i < 0 {
			all = append(all, Change{m.value, m.end, m.with, m.why})
			continue
		}
		var err error
		if all, err = d.set(all, m, settings[i]); err != nil {
			return nil, err
		}
		settings = slices.Delete(settings, i, i+1)
	}
	return insert(all, open, settings, seq.kept), nil
}

// set changes the value of a member that stands.
func (d *document) set(all []Change, m member, s setting) ([]Change, error) {
	if s.kids == nil || m.why != "" {
		return append(all, Change{m.value, m.end, s.literal(), s.why}), nil
	}
	if m.open == 0 {
		return nil, fmt.Errorf("edit %q: the body's member %q is not an object with fields", s.why, s.name)
	}
	return d.changes(all, m.open, m.kids, s.kids)
}

// insert adds the settings whose members do not stand, right after the '{'.
func insert(all []Change, open int, settings []setting, kept bool) []Change {
	for i, s := range settings {
		with := s.member()
		if kept || i < len(settings)-1 {
			with += ","
		}
		all = append(all, Change{open, open, with, s.why})
	}
	return all
}

// member is a setting as a member of an object.
func (s setting) member() string { return string(quoted(nil, s.name)) + ":" + s.literal() }

// literal is the JSON of a setting.
func (s setting) literal() string {
	if s.kids == nil {
		return s.value
	}
	kids := make([]string, len(s.kids))
	for i, kid := range s.kids {
		kids[i] = kid.member()
	}
	return "{" + strings.Join(kids, ",") + "}"
}

// quoted appends a member's name; names of edits are the catalogue's.
func quoted(to []byte, name string) []byte {
	to, _ = jsontext.AppendQuote(to, name) // invalid UTF-8 becomes U+FFFD
	return to
}

// isNamed reports whether a member has a name, however it is escaped.
func (d *document) isNamed(m member, name string) bool {
	raw := d.body[m.start:m.nameEnd]
	return len(raw) >= len(name)+2 && string(scan.Unquoted(raw)) == name
}

// merge orders the changes and leaves out those inside another: a member that goes takes its own changes with it.
func merge(changes []Change) []Change {
	slices.SortStableFunc(changes, func(a, b Change) int {
		if a.From == b.From && (a.From == a.To) != (b.From == b.To) {
			return cmp.Compare(a.To, b.To) // an insertion stands before what begins at its place
		}
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(b.To, a.To))
	})
	kept, end := changes[:0], 0
	for _, c := range changes {
		if c.From < end {
			continue
		}
		kept, end = append(kept, c), max(end, c.To)
	}
	return kept
}

// splice applies ordered changes that do not overlap.
func splice(body []byte, changes []Change) *spare.Buffer {
	size := len(body)
	for _, c := range changes {
		size += len(c.With) - (c.To - c.From)
	}
	out, from := spare.Borrow(size), 0
	for _, c := range changes {
		out.B = append(out.B, body[from:c.From]...)
		out.B = append(out.B, c.With...)
		from = c.To
	}
	out.B = append(out.B, body[from:]...)
	return out
}
