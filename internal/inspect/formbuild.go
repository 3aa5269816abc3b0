package inspect

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/inspect/scan"
	"github.com/vallum/vallum/internal/policy"
)

// extensions are the endings of a file name that go up: vLLM's audio readers look at them, and at nothing else of it.
var extensions = []string{".wav", ".mp3", ".flac", ".ogg", ".m4a", ".webm", ".mp4", ".mpeg", ".mpga"}

// extension is the listed ending of a file name, with its dot, or "".
func extension(filename string) string {
	if ending := strings.ToLower(path.Ext(filename)); slices.Contains(extensions, ending) {
		return ending
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
		return fmt.Errorf("a form's file has more than %d bytes, and there is %w to spool it to", above, &fs.PathError{Op: "open", Err: fs.ErrNotExist})
	}
	f.spool, err = os.CreateTemp(dir, "vallum-form-*") // mode 0600
	if err != nil {
		return err
	}
	if os.Remove(f.spool.Name()) != nil { // unlinked at once where the system can: a crash leaves nothing behind
		f.path = f.spool.Name()
	}
	f.size, err = io.Copy(f.spool, io.MultiReader(bytes.NewReader(content), part))
	return err
}

// close removes the spool.
func (f *form) close() error {
	if f.file == nil || f.file.spool == nil {
		return nil
	}
	err := f.file.spool.Close()
	if f.file.path != "" {
		err = errors.Join(err, os.Remove(f.file.path))
	}
	if f.file.spool = nil; err != nil {
		return fmt.Errorf("removing a form's spool: %w", err)
	}
	return nil
}

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
			boundary, f.file.name, f.file.extension)
		last = "\r\n" + last
	}
	b := Body{ContentType: "multipart/form-data; boundary=" + boundary, Changes: []Change{{From: 0, To: int(f.size), Why: "form"}}}
	if f.file != nil && f.file.spool != nil {
		b.Length = int64(head.Len()) + f.file.size + int64(len(last))
		b.Reader = io.MultiReader(&head, io.NewSectionReader(f.file.spool, 0, f.file.size), strings.NewReader(last))
		return b, nil
	}
	if f.file != nil {
		head.Write(f.file.content)
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
