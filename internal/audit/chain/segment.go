package chain

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Names of files in the directory of a log.
const (
	FormatName = "format"           // the number of the format
	PublicName = "log.pub"          // the verifier key, to be copied elsewhere
	SealedName = "checkpoints"      // the last checkpoint of every sealed segment, kept for good
	OpenName   = "checkpoints.open" // those of the segment being written
)

// Format is the one that this package reads.
const Format = 1

// ErrNewerFormat says that a newer Vallum wrote the directory.
var ErrNewerFormat = errors.New("audit log is from a newer version")

// CheckFormat refuses what a newer Vallum wrote; a directory without a format is new or of format 1.
func CheckFormat(fsys fs.FS) error {
	b, err := fs.ReadFile(fsys, FormatName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || n == 0 {
		return fmt.Errorf("file %q of the audit directory should hold a format number, such as %d", FormatName, Format)
	}
	if n > Format {
		return fmt.Errorf("%w: it has format %d, this vallum knows up to %d; use the vallum that wrote it or a newer one", ErrNewerFormat, n, Format)
	}
	return nil
}

// Segment is one file of lines, named FIRST-TIME.jsonl by the number of its first line and its
// opening time, so that names sort as the lines do.
type Segment struct {
	Name   string
	First  uint64
	Opened time.Time // the zero Time when the name has none
}

const segmentTime = "20060102T150405Z"

var segmentName = regexp.MustCompile(`^([0-9]{12,18})-([0-9]{8}T[0-9]{6}Z)\.jsonl$`)

// NameSegment is the name of the segment that begins with line first.
func NameSegment(first uint64, opened time.Time) string {
	return fmt.Sprintf("%012d-%s.jsonl", first, opened.UTC().Format(segmentTime))
}

// Segments lists those of a directory in the order of their lines, with no hole also while a daemon writes more. A directory
// that is read beside its writer may lack a file that was made meanwhile and have one that was made after it (POSIX,
// readdir); what is older than the newest that was seen is there when it is read again.
func Segments(fsys fs.FS) ([]Segment, error) {
	seen, err := listed(fsys)
	if err != nil || len(seen) == 0 {
		return nil, err
	}
	list, err := listed(fsys)
	if err != nil {
		return nil, err
	}
	newest := seen[len(seen)-1].First
	return slices.DeleteFunc(list, func(s Segment) bool { return s.First > newest }), nil
}

func listed(fsys fs.FS) ([]Segment, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, fmt.Errorf("listing segments: %w", err)
	}
	var list []Segment
	for _, e := range entries {
		m := segmentName.FindStringSubmatch(e.Name())
		if m == nil || e.IsDir() {
			continue
		}
		first, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			continue
		}
		opened, err := time.Parse(segmentTime, m[2])
		if err != nil {
			opened = time.Time{} // such as month 13: the lines still count
		}
		list = append(list, Segment{e.Name(), first, opened})
	}
	slices.SortFunc(list, func(a, b Segment) int {
		return cmp.Or(cmp.Compare(a.First, b.First), strings.Compare(a.Name, b.Name))
	})
	return list, nil
}
