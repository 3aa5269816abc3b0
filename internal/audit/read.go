package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/vallum/vallum/internal/audit/chain"
)

// Report is the answer of Verify.
type Report = chain.Report

// Verify checks the log in dir; see chain.Verify. It needs no lock and may run beside the daemon.
func Verify(dir, key string, held []byte) (Report, error) {
	return chain.Verify(os.DirFS(dir), key, held)
}

// Read gives the records of the log in dir from since on that keep answers true for, in order; the zero time and a nil
// keep mean all. It needs no lock, does not verify, and passes over an unfinished last line. A line that is no record is an
// error of its own, and reading goes on after it; an error of the file system ends it.
func Read(dir string, since time.Time, keep func(Record) bool) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		fsys := os.DirFS(dir)
		list, err := listForReading(fsys, dir)
		if err != nil {
			yield(Record{}, err)
			return
		}
		for i, s := range list {
			// All of its lines are older than the opening of the next. (Unless the clock went back: Read is for looking, not for proof.)
			if i+1 < len(list) && !list[i+1].Opened.IsZero() && list[i+1].Opened.Before(since.Truncate(time.Second)) {
				continue
			}
			for line, err := range chain.Lines(fsys, s.Name) {
				if err != nil {
					if !errors.Is(err, fs.ErrNotExist) { // deleted by age since it was listed
						yield(Record{}, err)
						return
					}
					break
				}
				if !yieldLine(s.Name, line, since, keep, yield) {
					return
				}
			}
		}
	}
}

func listForReading(fsys fs.FS, dir string) ([]chain.Segment, error) {
	if err := chain.CheckFormat(fsys); err != nil {
		return nil, err
	}
	list, err := chain.Segments(fsys)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no audit log in %q; the records of a daemon are in the folder audit of its state directory", dir)
	}
	return list, nil
}

func yieldLine(name string, line chain.RawLine, since time.Time, keep func(Record) bool, yield func(Record, error) bool) bool {
	if line.Torn {
		return true
	}
	r, err := decode(line.Bytes)
	if line.Long {
		err = errors.New("not a record: too long")
	}
	if err != nil {
		return yield(Record{}, fmt.Errorf("%s:%d: %w", name, line.Number, err))
	}
	if r.Time.Before(since) || keep != nil && !keep(r) {
		return true
	}
	return yield(r, nil)
}

// Find gives all records with this id, in order: admitted and ended, or refused. It answers ErrNotFound when there are none:
// the request was counted only (it came from nobody), or its chain.Segment was deleted by age.
func Find(dir, id string) ([]Record, error) {
	if id == "" {
		return nil, fmt.Errorf("%w: the id is empty", ErrNotFound)
	}
	fsys := os.DirFS(dir)
	list, err := listForReading(fsys, dir)
	if err != nil {
		return nil, err
	}
	var found []Record
	for _, s := range slices.Backward(list) {
		here, err := findIn(fsys, s.Name, id)
		if err != nil {
			return nil, err
		}
		found = append(here, found...)
		// A request begins with one of these, so nothing of it is in an older segment.
		if len(found) > 0 && (found[0].Event == Admitted || found[0].Event == Refused) {
			break
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, id)
	}
	return found, nil
}

func findIn(fsys fs.FS, name, id string) ([]Record, error) {
	needle := appendQuoted(nil, bound(id, maxID))
	var found []Record
	for line, err := range chain.Lines(fsys, name) {
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		if line.Torn || !bytes.Contains(line.Bytes, needle) {
			continue
		}
		if r, err := decode(line.Bytes); err == nil && r.ID == bound(id, maxID) {
			found = append(found, r)
		}
	}
	return found, nil
}
