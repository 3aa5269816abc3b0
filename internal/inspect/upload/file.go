package upload

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// extensions are the endings of a file name that go up: vLLM's audio readers look at them, and at nothing else of it.
var extensions = []string{".wav", ".mp3", ".flac", ".ogg", ".m4a", ".webm", ".mp4", ".mpeg", ".mpga"}

// Extension is the listed ending of a file name, with its dot, or "".
func Extension(filename string) string {
	if ending := strings.ToLower(path.Ext(filename)); slices.Contains(extensions, ending) {
		return ending
	}
	return ""
}

// File is the file of a form: in memory, or spooled to a file that nobody else finds. Its owner calls Close.
type File struct {
	Field   string // the form's field
	Ending  string // of its name: one of the listed extensions, or ""
	Content []byte // the whole, when it is in memory
	Size    int64  // bytes
	spool   *os.File
	path    string // of the spool, when it could not be unlinked while open
}

// Spooled is the content in the spool, from its beginning; nil when it is in memory.
func (f *File) Spooled() io.Reader {
	if f.spool == nil {
		return nil
	}
	return io.NewSectionReader(f.spool, 0, f.Size)
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if f.spool == nil {
		return bytes.NewReader(f.Content).ReadAt(p, off)
	}
	return f.spool.ReadAt(p, off)
}

// Fill reads the file's content: up to above bytes into memory, more into dir. An error of the disk is an *fs.PathError.
func (f *File) Fill(part io.Reader, above int64, dir string) error {
	content, err := io.ReadAll(io.LimitReader(part, above+1))
	if err != nil {
		return err
	}
	if int64(len(content)) <= above {
		f.Content, f.Size = content, int64(len(content))
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
	f.Size, err = io.Copy(f.spool, io.MultiReader(bytes.NewReader(content), part))
	return err
}

// Close removes the spool. It may be called of no file, and more than once.
func (f *File) Close() error {
	if f == nil || f.spool == nil {
		return nil
	}
	err := f.spool.Close()
	if f.path != "" {
		err = errors.Join(err, os.Remove(f.path))
	}
	if f.spool = nil; err != nil {
		return fmt.Errorf("removing a form's spool: %w", err)
	}
	return nil
}
