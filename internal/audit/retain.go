package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vallum/vallum/internal/audit/chain"
)

// expired tells how many segments, from the oldest, were sealed longer than retain ago. The last is never among them.
//
// Names carry the clock's opinion of the day, and a clock may jump. So opening times in the future of now
// are passed over for those of later segments; a segment counts as sealed no earlier than any before it; and age is measured not from now but from the opening of the last segment but one,
// so that a clock that leaps ahead has to stay there for a whole segment before it deletes anything.
func expired(list []chain.Segment, now time.Time, retain time.Duration) int {
	if retain <= 0 || len(list) < 3 {
		return 0
	}
	until := list[len(list)-2].Opened
	if now.Before(until) {
		until = now
	}
	n := 0
	latest := list[0].Opened
	for i := range list[:len(list)-1] {
		sealed := i + 1
		for sealed < len(list)-1 && list[sealed].Opened.After(now) {
			sealed++
		}
		if opened := list[sealed].Opened; opened.After(latest) {
			latest = opened
		}
		if latest.IsZero() || until.Sub(latest) < retain {
			break
		}
		n = i + 1
	}
	return n
}

// prune deletes expired segments, after a line of the chain has said so: a verifier takes missing lines for
// retention only where the log itself declares it.
func (l *Log) prune(now time.Time) error {
	list, err := chain.Segments(os.DirFS(l.dir))
	if err != nil {
		return err
	}
	n := expired(list, now, l.opts.Retain)
	if n == 0 {
		return nil
	}
	through := list[n].First - 1
	if l.notary.lastSigned() < through {
		return errors.New("segments are not signed to their end yet")
	}
	detail := fmt.Sprintf("retention deletes %d segments, the last of them %s", n, list[n-1].Name)
	if _, err := l.Append(Record{Event: Pruned, PrunedThrough: through, Detail: detail}); err != nil {
		return err
	}
	if err := l.syncSegment(l.segment()); err != nil { // a power cut must not keep the deletion and lose the line
		return err
	}
	for _, s := range list[:n] { // the oldest first, and none behind one that stays: that would be a hole
		if err := l.opts.disk.remove(filepath.Join(l.dir, s.Name)); err != nil {
			return err
		}
	}
	return nil
}
