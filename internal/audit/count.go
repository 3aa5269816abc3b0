package audit

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxTallies bounds memory and disk in a flood of strangers: at most this many lines a minute, and one for all the rest.
const maxTallies = 1024

// otherReason stands in the line for everything beyond maxTallies.
const otherReason = "other"

// tally adds up the refusals of callers who are nobody.
type tally struct {
	mu     sync.Mutex
	minute time.Time
	counts map[tallyKey]uint64
}

type tallyKey struct {
	reason  string
	network netip.Prefix // the zero Prefix for callers without an IP address
}

// Count adds one refusal of a caller who is nobody. Once a minute each reason and network (IPv4 /24, IPv6 /64)
// becomes one counted line. The zero Addr is right for a caller without an IP address.
func (l *Log) Count(reason string, remote netip.Addr) {
	l.count(tallyKey{bound(reason, maxText), network(remote)}, 1)
}

func (l *Log) count(k tallyKey, n uint64) {
	t := &l.tally
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.counts) == 0 {
		t.minute = l.opts.Now().UTC().Truncate(time.Minute)
		t.counts = make(map[tallyKey]uint64)
	}
	if _, ok := t.counts[k]; !ok && len(t.counts) >= maxTallies {
		k = tallyKey{reason: otherReason}
	}
	t.counts[k] += n
}

// take empties the tally when its minute is not the one of now, or at once.
func (t *tally) take(now time.Time, atOnce bool) (time.Time, map[tallyKey]uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !atOnce && now.UTC().Truncate(time.Minute).Equal(t.minute) {
		return t.minute, nil
	}
	counts := t.counts
	t.counts = nil
	return t.minute, counts
}

// WriteCounts writes what is counted so far, without waiting for the minute to end: before a line that is to be the last.
func (l *Log) WriteCounts() { l.writeCounts(l.tally.take(l.opts.Now(), true)) }

// writeCounts writes one line per count. What cannot be written is added to the minute that runs.
func (l *Log) writeCounts(minute time.Time, counts map[tallyKey]uint64) {
	keys := slices.SortedFunc(maps.Keys(counts), func(a, b tallyKey) int {
		return cmp.Or(strings.Compare(a.reason, b.reason), a.network.Addr().Compare(b.network.Addr()))
	})
	for _, k := range keys {
		r := Record{Event: Counted, Reason: k.reason, Count: counts[k], Minute: minute.Format(time.RFC3339)}
		if k.network.IsValid() {
			r.Remote = k.network.String()
		}
		if _, err := l.Append(r); err != nil {
			l.count(k, counts[k])
		}
	}
}

// network is what a counted line says about an address: enough to find the source of a flood.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits) // the zero Prefix for the zero Addr
	return p
}

// parseRemote reads an address with or without a port; the zero Addr when it is neither.
func parseRemote(s string) netip.Addr {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr()
	}
	a, _ := netip.ParseAddr(s)
	return a
}
