package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vallum/vallum/internal/audit/chain"
)

// commit decides every entry of a batch; the caller holds l.w. While writing fails, only lines
// that must not be lost are tried, with those kept from before in front of them.
func (l *Log) commit(batch []*entry) {
	if l.shut {
		for _, e := range batch {
			e.err = ErrClosed
		}
		return
	}
	if l.refusing.Load() == nil {
		err := l.put(batch)
		if err == nil {
			return
		}
		l.stopAdmitting(fmt.Errorf("writing the audit log: %w", err))
	}
	var must []*entry
	for _, e := range batch {
		if e.must {
			must = append(must, e)
		} else {
			e.err = fmt.Errorf("%w: %w", ErrNotAdmitting, *l.refusing.Load())
		}
	}
	if len(must) > 0 {
		l.putReserved(must)
	}
}

// putReserved writes lines that must not be lost, with the disk reserve released for them, or keeps them in memory.
// Behind lines that are kept already they only queue: the housekeeper tries all together. The caller holds l.w.
func (l *Log) putReserved(lines []*entry) {
	err := *l.refusing.Load()
	if len(l.pending) == 0 {
		l.releaseReserve()
		if err = l.put(lines); err == nil {
			return
		}
	}
	for _, e := range lines {
		if len(l.pending) >= maxPending {
			l.lost++
			e.err = ErrLost
			continue
		}
		// A copy: the caller takes its entry back as soon as it has its answer.
		l.pending = append(l.pending, &entry{body: e.body, must: true})
		e.body = nil
		e.err = fmt.Errorf("%w: %w", ErrKept, err)
	}
}

// stopAdmitting tells the operator once, not again with every line that fails after.
func (l *Log) stopAdmitting(why error) {
	if l.refusing.Swap(&why) == nil {
		l.problem(why)
	}
}

// put chains the lines and writes them with one write, all or none; the caller holds l.w.
// After a failure the segment is cut back to its last whole line, so that what is on disk is what was acknowledged.
func (l *Log) put(lines []*entry) error {
	if l.torn {
		if err := l.seg.Truncate(l.size); err != nil {
			return err
		}
		l.torn = false
	}
	buf, head := l.buf[:0], l.head
	for i, e := range lines {
		start := len(buf)
		buf = chain.AppendLine(buf, l.seq+uint64(i)+1, head, e.body)
		head = chain.HashOf(buf[start:])
		buf = append(buf, '\n')
	}
	if l.buf = buf; cap(buf) > keptBuffer {
		l.buf = nil
	}
	_, err := l.seg.WriteAt(buf, l.size)
	if err == nil && l.opts.Sync == SyncAlways {
		err = l.seg.Sync()
	}
	if err != nil {
		l.torn = l.seg.Truncate(l.size) != nil
		return err
	}
	for i, e := range lines {
		e.seq, e.err = l.seq+uint64(i)+1, nil
	}
	l.seq += uint64(len(lines))
	l.head = head
	l.size += int64(len(buf))
	if l.size >= l.opts.MaxSegmentBytes {
		l.rotate()
	}
	return nil
}

// putRecord writes a line of the log's own; the caller holds l.w.
func (l *Log) putRecord(r Record) error {
	body, err := appendBody(nil, &r)
	if err != nil {
		return err
	}
	return l.put([]*entry{{body: body, must: true}})
}

// rotate seals the segment and begins the next; the caller holds l.w. Whatever fails leaves the log
// writing to the segment it has: a segment that is too long is better than a chain with a hole.
func (l *Log) rotate() {
	if l.sealFailed || l.torn || l.size == 0 {
		return
	}
	if err := l.nextSegment(l.opts.Now()); err != nil {
		l.sealFailed = true // until the housekeeper comes by
		l.problem(fmt.Errorf("sealing a segment: %w", err))
		return
	}
	l.pruneDue = true
}

func (l *Log) nextSegment(now time.Time) error {
	if err := l.seg.Sync(); err != nil {
		return err
	}
	if err := l.notary.seal(l.seq, l.head, now); err != nil {
		return err
	}
	next, err := l.opts.disk.open(filepath.Join(l.dir, chain.NameSegment(l.seq+1, now)))
	if err != nil {
		return err
	}
	if err := syncDir(l.dir); err != nil {
		return errors.Join(err, next.Close())
	}
	if err := l.seg.Close(); err != nil { // synced already: nothing can be lost with it
		l.problem(err)
	}
	l.seg, l.size, l.opened = next, 0, now
	return nil
}

// keepHouse is the one goroutine of a log.
func (l *Log) keepHouse() {
	defer l.done.Done()
	second := time.NewTicker(checkpointInterval)
	defer second.Stop()
	sync := time.NewTicker(l.opts.SyncInterval)
	defer sync.Stop()
	for {
		select {
		case <-l.quit:
			return
		case <-second.C:
			l.tick()
		case <-sync.C:
			if l.opts.Sync == SyncInterval && l.opts.SyncInterval < checkpointInterval {
				_ = l.syncSegment(l.segment()) // reported where it stops admission
			}
		}
	}
}

// tick is the work of every second.
func (l *Log) tick() {
	now := l.opts.Now()
	l.readmit(now)
	l.rotateByAge(now)
	if err := l.checkpoint(now); l.refusing.Load() == nil { // otherwise it fails for the reason that is known already
		l.report("signing the audit log", err)
	}
	l.writeCounts(l.tally.take(now, false))
	if free, ok := l.opts.disk.free(l.dir); ok {
		l.low.Store(free < 2*uint64(l.opts.ReserveBytes))
	}
	l.w.Lock()
	due := l.pruneDue && l.refusing.Load() == nil
	l.pruneDue = l.pruneDue && !due
	l.w.Unlock()
	if due {
		l.report("deleting old segments", l.prune(now))
	}
}

func (l *Log) report(doing string, err error) {
	if err != nil {
		l.problem(fmt.Errorf("%s: %w", doing, err))
	}
}

// readmit ends a time of failed writes: kept lines first, then the reserve again, then a line that says what
// happened. Only when all three are on disk is anything admitted.
func (l *Log) readmit(now time.Time) {
	l.w.Lock()
	defer l.w.Unlock()
	why := l.refusing.Load()
	if why == nil {
		return
	}
	if len(l.pending) > 0 {
		l.releaseReserve()
		if l.put(l.pending) != nil {
			return
		}
		l.pending = nil
	}
	if l.allocateReserve() != nil {
		return
	}
	if l.opts.Sync != SyncNone && l.seg.Sync() != nil {
		return
	}
	r := Record{Time: now, Event: Recovered, Count: l.lost, Detail: "writing works again after: " + (*why).Error()}
	if l.putRecord(r) != nil {
		return
	}
	l.lost = 0
	l.refusing.Store(nil)
}

func (l *Log) rotateByAge(now time.Time) {
	l.w.Lock()
	defer l.w.Unlock()
	l.sealFailed = false
	if now.Before(l.opened) { // the clock went back: age begins again, or the segment would never be sealed
		l.opened = now
	}
	if now.Sub(l.opened) >= l.opts.MaxSegmentAge || l.size >= l.opts.MaxSegmentBytes {
		l.rotate()
	}
}

// syncSegment forces lines to the disk. It works without the lock, since a slow disk must not stop the writers.
// After a failure the kernel may have thrown the lines away, so nothing more is admitted until a sync succeeds.
func (l *Log) syncSegment(seg file) error {
	err := seg.Sync()
	if err == nil || errors.Is(err, os.ErrClosed) { // a rotation closed it, and synced it before
		return nil
	}
	l.w.Lock()
	defer l.w.Unlock()
	l.stopAdmitting(fmt.Errorf("syncing the audit log: %w", err))
	return err
}

func (l *Log) segment() file {
	l.w.Lock()
	defer l.w.Unlock()
	return l.seg
}

// checkpoint signs what is written so far, after it is on disk: a power cut must not take what is signed.
func (l *Log) checkpoint(now time.Time) error {
	l.w.Lock()
	seg, seq, head := l.seg, l.seq, l.head
	l.w.Unlock()
	if seq == l.notary.lastSigned() {
		return nil
	}
	if l.opts.Sync != SyncNone {
		if err := l.syncSegment(seg); err != nil {
			return err
		}
	}
	return l.notary.sign(seq, head, now)
}

// Close flushes counts and kept lines, syncs, signs the end and gives up the lock. Its error says what is not on disk.
func (l *Log) Close() error {
	if l.closing.Swap(true) {
		return ErrClosed
	}
	close(l.quit)
	l.done.Wait()
	now := l.opts.Now()
	l.readmit(now)
	l.WriteCounts()

	l.w.Lock()
	l.shut = true
	var errs []error
	if n := uint64(len(l.pending)) + l.lost; n > 0 {
		errs = append(errs, fmt.Errorf("%d audit lines could not be written: %w", n, *l.refusing.Load()))
	}
	l.w.Unlock()

	errs = append(errs, l.seg.Sync(), l.checkpoint(now), l.notary.open.file.Sync())
	close(l.notary.sinks)
	select {
	case <-l.sunk:
	case <-time.After(sinkGrace):
		errs = append(errs, errors.New("a sink for checkpoints hangs; its last ones are not out"))
	}
	return errors.Join(append(errs, l.closeFiles())...)
}

func (l *Log) closeFiles() error {
	var errs []error
	for _, f := range []file{l.notary.open.file, l.notary.sealed.file, l.seg, l.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// feedSinks hands checkpoints out, apart from everything that must not wait.
func (l *Log) feedSinks() {
	defer close(l.sunk)
	for msg := range l.notary.sinks {
		for _, sink := range l.opts.Sinks {
			if _, err := sink.Write(msg); err != nil {
				l.problem(fmt.Errorf("handing out a checkpoint: %w", err))
			}
		}
	}
}
