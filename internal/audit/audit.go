// Package audit is Vallum's record of every request: lines of JSON in a SHA-256 chain, with checkpoints signed by Ed25519.
// It refuses to hold prompt or output text, to acknowledge a line before write(2) returned, and to continue a log whose signed part has changed.
//
// The format is described in docs/audit.md, completely enough for a verifier to be written from that page.
// A line is chained by one lock holder, in batches; callers encode in parallel. One goroutine keeps house:
// it syncs, signs, rotates by age, deletes by age, adds up and retries. Close waits for it.
package audit

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vallum/vallum/internal/audit/chain"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrNotAdmitting answers Append of a line that may not use the disk reserve while lines cannot be
	// written: no record, no request.
	ErrNotAdmitting = errors.New("audit log cannot be written, so nothing is admitted")
	// ErrKept answers Append of a line that must not be lost and could not be written now. It is kept in memory
	// and written as soon as that works; until then nothing is admitted.
	ErrKept = errors.New("audit line is kept until it can be written")
	// ErrLost answers Append of a line that must not be lost when too many are kept already.
	ErrLost = errors.New("audit line is lost: too many wait for room on the disk")
	// ErrClosed answers everything after Close.
	ErrClosed = errors.New("audit log is closed")
	// ErrLocked says that another process, or this one, already writes this log.
	ErrLocked = errors.New("another process writes this audit log; give each daemon a state directory of its own")
	// ErrNewerFormat says that a newer Vallum wrote the directory.
	ErrNewerFormat = chain.ErrNewerFormat
	// ErrTampered says that the signed part of the log is not what was signed.
	ErrTampered = errors.New("audit log is not what was signed")
	// ErrNotFound answers Find for an id that no line has.
	ErrNotFound = errors.New("no record with this id")
)

// Sync says when lines are forced to the disk. Whichever it is, a line that Append acknowledged
// survives the death of the process; Sync is about the death of the machine.
type Sync string

// The zero Sync is SyncInterval.
const (
	// SyncInterval loses at most one Options.SyncInterval to a power cut.
	SyncInterval Sync = "interval"
	// SyncAlways loses nothing: every batch is synced before it is acknowledged.
	SyncAlways Sync = "always"
	// SyncNone leaves it to the kernel. A power cut may then take lines that are already signed, and
	// Open refuses such a log, because nothing tells a power cut from a cut tail.
	SyncNone Sync = "none"
)

// Defaults of Options.
const (
	DefaultOrigin          = "vallum-audit"
	DefaultMaxSegmentBytes = 64 << 20
	DefaultMaxSegmentAge   = 24 * time.Hour
	DefaultReserveBytes    = 16 << 20
	checkpointInterval     = time.Second
	minSyncInterval        = 10 * time.Millisecond
	maxPending             = 8192    // lines kept while the disk refuses them
	keptBuffer             = 1 << 20 // a larger write buffer is given back
	sinkQueue              = 64      // checkpoints that a slow sink may be behind
	sinkGrace              = 2 * time.Second
)

// Options of Open. The zero value is right for production.
type Options struct {
	Sync            Sync          // zero: SyncInterval
	SyncInterval    time.Duration // zero or more than a second: a second, since nothing is signed unsynced; at least 10 ms
	MaxSegmentBytes int64         // a segment that has reached it is sealed; zero: 64 MiB
	MaxSegmentAge   time.Duration // the same by age; zero: 24 h
	Retain          time.Duration // sealed segments older than this are deleted; zero: never
	ReserveBytes    int64         // disk kept for the ends of admitted requests; zero: 16 MiB
	KeyFile         string        // signing key, made on first use; empty: log.key in the directory
	Origin          string        // names the log in its checkpoints, no spaces or "+"; empty: the key's, or DefaultOrigin

	Now     func() time.Time // zero: time.Now; it may jump
	Sinks   []io.Writer      // each gets every checkpoint, one Write each, from one goroutine; one that hangs misses some
	Problem func(error)      // told what the operator should know and no caller waits for; must not call the Log

	disk *disk // tests: a disk that is full
}

func (o Options) withDefaults() (Options, error) {
	o.Sync = cmp.Or(o.Sync, SyncInterval)
	if o.Sync != SyncInterval && o.Sync != SyncAlways && o.Sync != SyncNone {
		return o, fmt.Errorf("audit sync is %q; it can be %q, %q or %q", o.Sync, SyncInterval, SyncAlways, SyncNone)
	}
	if o.SyncInterval < 0 || o.MaxSegmentBytes < 0 || o.MaxSegmentAge < 0 || o.Retain < 0 || o.ReserveBytes < 0 {
		return o, errors.New("audit sizes and durations cannot be negative")
	}
	o.SyncInterval = max(minSyncInterval, min(cmp.Or(o.SyncInterval, checkpointInterval), checkpointInterval))
	o.MaxSegmentBytes = cmp.Or(o.MaxSegmentBytes, DefaultMaxSegmentBytes)
	o.MaxSegmentAge = cmp.Or(o.MaxSegmentAge, DefaultMaxSegmentAge)
	o.ReserveBytes = cmp.Or(o.ReserveBytes, DefaultReserveBytes)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Problem == nil {
		o.Problem = func(error) {}
	}
	if o.disk == nil {
		d := osDisk()
		o.disk = &d
	}
	return o, nil
}

// Log is an open log. Its methods may be called from any goroutine. The zero Log is not usable: Open makes one.
type Log struct {
	dir    string
	opts   Options
	lock   file
	notary notary
	tally  tally

	mu   sync.Mutex // guards next
	next *batch     // gathers lines while the one before is written

	w       sync.Mutex // the sequencer: guards all of the below
	seg     file
	size    int64      // of the segment, in whole lines
	opened  time.Time  // of the segment
	seq     uint64     // of the last line
	head    chain.Hash // of the last line
	buf     []byte
	torn    bool     // the segment may have bytes after size
	pending []*entry // lines that must not be lost, in order
	lost    uint64   // lines that were
	reserved,
	sealFailed, // do not try again with every line
	pruneDue,
	shut bool

	closing  atomic.Bool
	refusing atomic.Pointer[error] // why nothing is admitted, or nil
	low      atomic.Bool           // little disk left: refusals are counted, not recorded singly
	waiting  atomic.Int64          // Append calls under way

	quit chan struct{}
	done sync.WaitGroup // the housekeeper
	sunk chan struct{}  // closed when the sinks have seen everything
}

// batch is lines that are written with one write. The first to join writes for all.
type batch struct {
	entries []*entry
	done    chan struct{} // made by the second to join
	room    [4]*entry     // for entries: most batches are small
}

type entry struct {
	body []byte
	must bool
	seq  uint64
	err  error
}

var entries = sync.Pool{New: func() any { return &entry{body: make([]byte, 0, 1024)} }}

// Append writes one line and returns its number once write(2) has returned (and fsync, with SyncAlways).
// It sets Seq, Prev and, when zero, Time. Errors: ErrNotAdmitting, ErrKept, ErrLost, ErrClosed, or an unknown event.
//
// A refused record while the disk is nearly full is counted instead (see Count) and answers 0, nil: one
// key-holder who is refused in a loop must not use up the room that other people's requests need.
func (l *Log) Append(r Record) (uint64, error) {
	if r.Event == Refused && (l.low.Load() || l.refusing.Load() != nil) {
		l.Count(r.Reason, parseRemote(r.Remote))
		return 0, nil
	}
	if why := l.refusing.Load(); why != nil && !r.Event.mustKeep() {
		return 0, fmt.Errorf("%w: %w", ErrNotAdmitting, *why)
	}
	if r.Time.IsZero() {
		r.Time = l.opts.Now()
	}
	e := entries.Get().(*entry) // the pool holds nothing else
	*e = entry{body: e.body[:0], must: r.Event.mustKeep()}
	var err error
	if e.body, err = appendBody(e.body, &r); err != nil {
		return 0, err
	}
	l.submit(e)
	seq, err := e.seq, e.err
	entries.Put(e)
	return seq, err
}

// submit returns when e is decided. Who finds no batch waiting begins one and writes it as soon as the
// batch before is written; whoever comes until then rides along.
func (l *Log) submit(e *entry) {
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	l.mu.Lock()
	b := l.next
	leads := b == nil
	if leads {
		b = new(batch)
		b.entries, l.next = b.room[:0], b
	} else if b.done == nil {
		b.done = make(chan struct{})
	}
	b.entries = append(b.entries, e)
	l.mu.Unlock()
	if !leads {
		<-b.done
		return
	}
	l.w.Lock()
	l.mu.Lock()
	l.next = nil // from here on nobody joins
	l.mu.Unlock()
	l.commit(b.entries)
	l.w.Unlock()
	if b.done != nil {
		close(b.done)
	}
}

// Stats is what metrics and readiness probes ask for.
type Stats struct {
	Lines       uint64 // number of the last line
	Signed      uint64 // lines under the last checkpoint
	Waiting     int64  // Append calls under way
	Kept        int    // lines waiting for room on the disk
	Lost        uint64 // lines that found no room in memory either, since the last recovered line
	NotAdmitted error  // why nothing is admitted; nil when all is well
}

// Stats may be called at any time.
func (l *Log) Stats() Stats {
	l.w.Lock()
	defer l.w.Unlock()
	s := Stats{Lines: l.seq, Signed: l.notary.lastSigned(), Waiting: l.waiting.Load(), Kept: len(l.pending), Lost: l.lost}
	if why := l.refusing.Load(); why != nil {
		s.NotAdmitted = *why
	}
	return s
}

// VerifierKey is the public half of the signing key in the form that Verify takes (a note verifier key).
func (l *Log) VerifierKey() string { return l.notary.key.vkey }

func (l *Log) problem(err error) { l.opts.Problem(err) }
