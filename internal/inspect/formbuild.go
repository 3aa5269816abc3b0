package inspect

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/inspect/scan"
	"github.com/vallum/vallum/internal/policy"
)

// rewrite builds the form that goes up: its text fields, then its file.
func (f *form) rewrite(edits []policy.Edit) (Body, error) {
	object, err := f.document.rewrite(edits)
	if err != nil {
		return Body{}, err
	}
	// The caller cannot know the boundary, so no value can contain it.
	boundary := "vallum-" + rand.Text()
	var head bytes.Buffer
	dec := jsontext.NewDecoder(bytes.NewBuffer(object.Bytes))
	_, err = dec.ReadToken()
	for err == nil && dec.PeekKind() == '"' {
		err = writeField(&head, boundary, dec)
	}
	if err != nil {
		return Body{}, fmt.Errorf("building a form: %w", err)
	}
	last := "--" + boundary + "--\r\n"
	if f.file != nil {
		fmt.Fprintf(&head, "--%s\r\nContent-Disposition: form-data; name=\"%s\"; filename=\"audio%s\"\r\nContent-Type: application/octet-stream\r\n\r\n",
			boundary, f.file.Field, f.file.Ending)
		last = "\r\n" + last
	}
	b := Body{ContentType: "multipart/form-data; boundary=" + boundary, Changes: []Change{{From: 0, To: int(f.size), Why: "form"}}}
	if f.file != nil {
		if spooled := f.file.Spooled(); spooled != nil {
			b.Length = int64(head.Len()) + f.file.Size + int64(len(last))
			b.Reader = io.MultiReader(&head, spooled, strings.NewReader(last))
			return b, nil
		}
		head.Write(f.file.Content)
	}
	head.WriteString(last)
	b.Bytes, b.Length, b.Reader = head.Bytes(), int64(head.Len()), bytes.NewReader(head.Bytes())
	return b, nil
}

// writeField writes the next member of an object as parts: one for a value, one for each element of a list.
func writeField(w *bytes.Buffer, boundary string, dec *jsontext.Decoder) error {
	token, err := dec.ReadToken()
	if err != nil {
		return err
	}
	name := token.String() // from a table or an edit, so it needs no quoting
	list := dec.PeekKind() == '['
	if list {
		if _, err := dec.ReadToken(); err != nil {
			return err
		}
	}
	for dec.PeekKind() != ']' {
		raw, err := dec.ReadValue()
		if err != nil {
			return err
		}
		text := []byte(raw)
		if raw.Kind() == '"' {
			text = scan.Unquoted(raw)
		}
		fmt.Fprintf(w, "--%s\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n%s\r\n", boundary, name, text)
		if !list {
			return nil
		}
	}
	_, err = dec.ReadToken()
	return err
}

// close removes the spool.
func (f *form) close() error { return f.file.Close() }
