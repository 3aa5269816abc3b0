package inspect

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
)

// extensions are the endings of a file name that go up: vLLM's audio readers look at them, and at nothing else of it.
var extensions = []string{"wav", "mp3", "flac", "ogg", "m4a", "webm", "mp4", "mpeg", "mpga"}

// extension is the listed ending of a file name, with its dot, or "".
func extension(filename string) string {
	dot := strings.LastIndexByte(filename, '.')
	if ending := strings.ToLower(filename[dot+1:]); dot >= 0 && slices.Contains(extensions, ending) {
		return "." + ending
	}
	return ""
}

// formFile is the file of a form: in memory, or spooled to a file that nobody else finds.
type formFile struct {
	name, extension string
	content         []byte
	spool           *os.File
	path            string // of the spool, when it could not be unlinked while open
	size            int64
}

// fill reads the file's content: up to above bytes into memory, more into dir.
func (f *formFile) fill(part io.Reader, above int64, dir string) error {
	content, err := io.ReadAll(io.LimitReader(part, above+1))
	if err != nil {
		return err
	}
	if int64(len(content)) <= above {
		f.content, f.size = content, int64(len(content))
		return nil
	}
	if dir == "" {
		return refuse(verdict.InternalError, fmt.Errorf("a form's file has more than %d bytes and there is no directory to spool it to", above))
	}
	f.spool, err = os.CreateTemp(dir, "vallum-form-*") // mode 0600
	if err != nil {
		return refuse(verdict.Busy, fmt.Errorf("spooling a form: %w", err))
	}
	if os.Remove(f.spool.Name()) != nil { // unlinked at once where the system can: a crash leaves nothing behind
		f.path = f.spool.Name()
	}
	source := &noted{Reader: io.MultiReader(bytes.NewReader(content), part)}
	f.size, err = io.Copy(f.spool, source)
	if err != nil && source.err == nil {
		return refuse(verdict.Busy, fmt.Errorf("spooling a form: %w", err)) // the disk, not the caller
	}
	return err
}

// noted remembers whether reading failed, so that a full disk is not taken for a bad form.
type noted struct {
	io.Reader
	err error
}

func (n *noted) Read(p []byte) (int, error) {
	k, err := n.Reader.Read(p)
	if err != nil && err != io.EOF {
		n.err = err
	}
	return k, err
}

// close removes the spool.
func (f *form) close() error {
	if f.file == nil || f.file.spool == nil {
		return nil
	}
	spool, path := f.file.spool, f.file.path
	f.file.spool = nil
	err := spool.Close()
	if path != "" {
		if gone := os.Remove(path); gone != nil {
			err = gone
		}
	}
	if err != nil {
		return fmt.Errorf("removing a form's spool: %w", err)
	}
	return nil
}

// rewrite builds the form that goes up.
func (f *form) rewrite(edits []policy.Edit) (Body, error) {
	fields, err := f.edited(edits)
	if err != nil {
		return Body{}, err
	}
	// The caller cannot know the boundary, so no value can contain it.
	boundary := "vallum-" + rand.Text()
	var head bytes.Buffer
	for _, field := range fields {
		fmt.Fprintf(&head, "--%s\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n%s\r\n", boundary, field.name, field.value)
	}
	last := "--" + boundary + "--\r\n"
	b := Body{ContentType: "multipart/form-data; boundary=" + boundary, Changes: []Change{{From: 0, To: int(f.size), Why: "form"}}}
	if f.file == nil {
		head.WriteString(last)
		return b.of(head.Bytes()), nil
	}
	fmt.Fprintf(&head, "--%s\r\nContent-Disposition: form-data; name=\"%s\"; filename=\"audio%s\"\r\nContent-Type: application/octet-stream\r\n\r\n",
		boundary, f.file.name, f.file.extension)
	last = "\r\n" + last
	if f.file.spool == nil {
		head.Write(f.file.content)
		head.WriteString(last)
		return b.of(head.Bytes()), nil
	}
	b.Length = int64(head.Len()) + f.file.size + int64(len(last))
	b.Reader = io.MultiReader(&head, io.NewSectionReader(f.file.spool, 0, f.file.size), strings.NewReader(last))
	return b, nil
}

// of is the body with its bytes.
func (b Body) of(all []byte) Body {
	b.Bytes, b.Reader, b.Length = all, bytes.NewReader(all), int64(len(all))
	return b
}

// edited is the fields that go up, in the caller's order, with the edits.
func (f *form) edited(edits []policy.Edit) ([]formField, error) {
	var fields []formField
	for _, field := range f.fields {
		if !field.written {
			fields = append(fields, field)
		}
	}
	for _, e := range edits {
		name, nested := strings.CutPrefix(e.Pointer, "/")
		text, ok := plain(e.Value)
		if !nested || !safeName(name) || !ok {
			return nil, fmt.Errorf("edit %q: a form takes a text for one field, not %q", e.Name, e.Pointer)
		}
		if i := slices.IndexFunc(fields, func(field formField) bool { return field.name == name }); i >= 0 {
			fields[i].value = text
			continue
		}
		fields = append(fields, formField{name: name, value: text})
	}
	for _, field := range fields {
		if !safeName(field.name) {
			return nil, fmt.Errorf("the field %q cannot be written into a form", field.name)
		}
	}
	return fields, nil
}

// plain is a JSON literal as a form's text.
func plain(literal string) (string, bool) {
	raw := jsontext.Value(literal)
	if !raw.IsValid() {
		return "", false
	}
	switch raw.Kind() {
	case '"':
		return string(unquoted([]byte(strings.TrimSpace(literal)))), true
	case '0', 't', 'f':
		return strings.TrimSpace(literal), true
	}
	return "", false
}

// safeName wants nothing in a field's name that a header could misread.
func safeName(name string) bool {
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c != '_' && c != '[' && c != ']' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return name != ""
}
