package audit

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vallum/vallum/internal/audit/chain"
)

// Open opens the log in dir for writing, or begins one there. It makes the directory (0700), the signing key and
// log.pub when they are missing, and cuts an unfinished last line off, which a recovered line then says.
//
// Errors: ErrLocked, chain.ErrNewerFormat, ErrTampered, a directory or key that others can get at, and whatever the file
// system says. A full disk is no error for a log in good order: it opens and admits nothing until there is room.
func Open(dir string, opts Options) (*Log, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := prepareDir(dir); err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("locking %q: %w", dir, err)
	}
	l := &Log{dir: dir, opts: opts, lock: lock, quit: make(chan struct{}), sunk: make(chan struct{}), pruneDue: true}
	if err := l.load(); err != nil {
		return nil, errors.Join(err, l.closeFiles())
	}
	go l.feedSinks()
	l.tick() // before the first line: the next one is a second away
	l.done.Add(1)
	go l.keepHouse()
	return l, nil
}

// load brings the directory into order and the Log to the end of what is there.
func (l *Log) load() error {
	fsys := os.DirFS(l.dir)
	if err := chain.CheckFormat(fsys); err != nil {
		return err
	}
	list, err := chain.Segments(fsys)
	if err != nil {
		return err
	}
	if err := l.openNotary(fsys, len(list) == 0); err != nil {
		return err
	}
	if _, err := fs.Stat(fsys, chain.FormatName); err != nil {
		if err := replaceFile(filepath.Join(l.dir, chain.FormatName), []byte(strconv.Itoa(chain.Format)+"\n")); err != nil {
			return fmt.Errorf("audit directory cannot be written: %w", err)
		}
	}
	last, err := l.lastCheckpoint(fsys)
	if err != nil {
		return err
	}
	end, err := findEnd(fsys, list, last)
	if err != nil {
		return err
	}
	l.seq, l.head = end.seq, end.head
	if err := l.openSegment(list, end); err != nil {
		return err
	}
	l.w.Lock()
	defer l.w.Unlock()
	if err := l.allocateReserve(); err != nil {
		l.stopAdmitting(err) // the housekeeper tries again
	}
	if end.cut == 0 {
		return nil
	}
	const detail = "an unfinished end of the last segment was cut; its bytes are in a file that ends in .cut"
	return l.putRecord(Record{Time: l.opts.Now(), Event: Recovered, Bytes: end.cut, Detail: detail})
}

// openNotary reads or makes the key and opens the two files of checkpoints behind their last whole note.
func (l *Log) openNotary(fsys fs.FS, fresh bool) error {
	key, err := loadKey(cmp.Or(l.opts.KeyFile, filepath.Join(l.dir, keyName)), l.opts.Origin, fresh)
	if err != nil {
		return err
	}
	if err := key.publish(l.dir); err != nil {
		return err
	}
	l.notary.key = key
	l.notary.sinks = make(chan []byte, sinkQueue)
	for name, f := range map[string]*noteFile{chain.SealedName: &l.notary.sealed, chain.OpenName: &l.notary.open} {
		_, whole, err := chain.ReadNotes(fsys, name)
		if err != nil {
			return err
		}
		opened, err := l.opts.disk.open(filepath.Join(l.dir, name))
		if err != nil {
			return fmt.Errorf("opening %s: %w", name, err)
		}
		f.file, f.size = opened, int64(whole)
		if err := f.file.Truncate(f.size); err != nil {
			return fmt.Errorf("cutting an unfinished checkpoint: %w", err)
		}
	}
	return nil
}

// lastCheckpoint is the one with the most lines; the zero one when there is none.
func (l *Log) lastCheckpoint(fsys fs.FS) (chain.Checkpoint, error) {
	var last chain.Checkpoint
	for _, name := range []string{chain.SealedName, chain.OpenName} {
		notes, _, err := chain.ReadNotes(fsys, name)
		if err != nil {
			return last, err
		}
		if len(notes) == 0 {
			continue
		}
		n := notes[len(notes)-1] // sizes only grow within a file
		c, err := chain.OpenCheckpoint(n.Msg, l.notary.key.verifier)
		if err != nil {
			return last, fmt.Errorf("%w: %s:%d: %w", ErrTampered, name, n.Line, err)
		}
		if c.Size > last.Size {
			last = c
		}
	}
	l.notary.signed = last.Size
	return last, nil
}

// end is where a log continues.
type end struct {
	seq  uint64
	head chain.Hash
	size int64 // of the last segment's whole, chained lines
	cut  int64 // bytes behind them
}

// findEnd walks the last segment. What is broken there beyond the last signed line is what a crash or a power cut
// leaves behind, and is cut; what is broken before it is not, and such a log is not continued.
func findEnd(fsys fs.FS, list []chain.Segment, signed chain.Checkpoint) (end, error) {
	var e end
	if n := len(list); n > 0 {
		var err error
		if e, err = walkEnd(fsys, list[n-1], signed); err != nil {
			return end{}, err
		}
		if e.seq == 0 && list[n-1].First > 1 { // the process ended right after it had made the file
			if n == 1 {
				return end{}, fmt.Errorf("%w: the segment before %s is gone", ErrTampered, list[0].Name)
			}
			prev, err := walkEnd(fsys, list[n-2], signed)
			if err != nil {
				return end{}, err
			}
			if prev.cut > 0 || prev.seq+1 != list[n-1].First {
				return end{}, fmt.Errorf("%w: %s holds to line %d only; run vallum log verify", ErrTampered, list[n-2].Name, prev.seq)
			}
			e.seq, e.head = prev.seq, prev.head
		}
	}
	if e.seq < signed.Size {
		return end{}, fmt.Errorf("%w: it holds to line %d only, but line %d was signed at %s: the tail was changed or cut "+
			"(or, with sync none, lost to a power cut); move the directory aside as evidence and begin a new log",
			ErrTampered, e.seq, signed.Size, signed.Time.Format(time.RFC3339))
	}
	return e, nil
}

func walkEnd(fsys fs.FS, s chain.Segment, signed chain.Checkpoint) (end, error) {
	var e end
	for line, err := range chain.Lines(fsys, s.Name) {
		if err != nil {
			return end{}, fmt.Errorf("reading %s: %w", s.Name, err)
		}
		k, ok := chain.ParseLink(line.Bytes)
		whole := ok && !line.Torn && !line.Long
		chained := whole && (e.seq == 0 && k.Seq == s.First || e.seq != 0 && k.Seq == e.seq+1 && k.Prev == e.head)
		if !chained {
			break
		}
		h := chain.HashOf(line.Bytes)
		if k.Seq == signed.Size && h != signed.Head {
			return end{}, fmt.Errorf("%w: %s:%d: line %d is not the one that was signed at %s; run vallum log verify",
				ErrTampered, s.Name, line.Number, k.Seq, signed.Time.Format(time.RFC3339))
		}
		e.seq, e.head, e.size = k.Seq, h, line.Offset+int64(len(line.Bytes))+1
	}
	info, err := fs.Stat(fsys, s.Name)
	if err != nil {
		return end{}, err
	}
	e.cut = info.Size() - e.size
	return e, nil
}

// openSegment opens the segment that is written next and cuts what is behind its last good line, keeping a copy.
func (l *Log) openSegment(list []chain.Segment, e end) error {
	now := l.opts.Now()
	name, opened := chain.NameSegment(l.seq+1, now), now
	if n := len(list); n > 0 {
		name, opened = list[n-1].Name, list[n-1].Opened
	}
	l.size = e.size
	l.opened = opened
	path := filepath.Join(l.dir, name)
	if e.cut > 0 { // it may be evidence, so it is kept beside
		b, err := os.ReadFile(path)
		if err == nil {
			err = replaceFile(fmt.Sprintf("%s.%d.cut", path, e.seq+1), b[min(e.size, int64(len(b))):])
		}
		if err != nil {
			return fmt.Errorf("keeping a copy of an unfinished line: %w", err)
		}
	}
	seg, err := l.opts.disk.open(path)
	if err != nil {
		return fmt.Errorf("opening a segment: %w", err)
	}
	l.seg = seg
	if e.cut > 0 {
		if err := l.seg.Truncate(l.size); err != nil {
			return fmt.Errorf("cutting an unfinished line: %w", err)
		}
	}
	return syncDir(l.dir)
}
