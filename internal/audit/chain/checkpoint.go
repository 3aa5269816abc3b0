package chain

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Checkpoint is a signed statement: when Time was, the log had Size lines and the last had this hash.
type Checkpoint struct {
	Origin string
	Size   uint64
	Time   time.Time
	Head   Hash // of line Size
}

// Text is what is signed: the form of a C2SP tlog-checkpoint with the time as an extension line.
// Its third line is the hash of the last line, not a Merkle root.
func (c Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Head[:]), c.Time.UTC().Format(TimeLayout))
}

// OpenCheckpoint verifies one signed note. Exactly four lines of text and a signature by this key are right.
func OpenCheckpoint(msg []byte, v note.Verifier) (Checkpoint, error) {
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, err
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 5 || lines[0] != v.Name() {
		return Checkpoint{}, fmt.Errorf("checkpoint should have four lines, the first %q", v.Name())
	}
	c := Checkpoint{Origin: lines[0]}
	if c.Size, err = strconv.ParseUint(lines[1], 10, 63); err != nil || c.Size == 0 {
		return Checkpoint{}, fmt.Errorf("checkpoint has %q where the number of lines should be", lines[1])
	}
	head, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(head) != len(c.Head) {
		return Checkpoint{}, fmt.Errorf("checkpoint has %q where a SHA-256 in base64 should be", lines[2])
	}
	copy(c.Head[:], head)
	if c.Time, err = time.Parse(TimeLayout, lines[3]); err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint has %q where its time should be", lines[3])
	}
	return c, nil
}

// SignedNote is one note of a file of notes, unverified, and the line at which it begins.
type SignedNote struct {
	Msg  []byte
	Line int
}

// SplitNotes takes a file of notes apart: text, empty line, signatures, empty line, and so on.
// whole is how many bytes the complete notes take; what follows was being written when the process ended.
func SplitNotes(b []byte) (notes []SignedNote, whole int) {
	line := 1
	for {
		rest := b[whole:]
		text := bytes.Index(rest, []byte("\n\n"))
		if text < 0 {
			return notes, whole
		}
		sigs := bytes.Index(rest[text+2:], []byte("\n\n"))
		if sigs < 0 {
			return notes, whole
		}
		n := text + 2 + sigs + 2
		notes = append(notes, SignedNote{rest[:n-1], line})
		line += bytes.Count(rest[:n], []byte("\n"))
		whole += n
	}
}

// ReadNotes gives the notes of one file; none when there is no such file.
func ReadNotes(fsys fs.FS, name string) (notes []SignedNote, whole int, err error) {
	b, err := fs.ReadFile(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading checkpoints: %w", err)
	}
	notes, whole = SplitNotes(b)
	return notes, whole, nil
}
