// Package chain is the format of the audit log: lines that hold the hash of the line before, segments of lines, signed checkpoints, and the verification of them all.
// It refuses to write: what it says about a log does not depend on the code that made it. docs/audit.md is the same in words.
package chain

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
)

// Hash is the SHA-256 of one line without its newline. The zero Hash stands before line 1.
type Hash [sha256.Size]byte

// HashOf is the hash of a line.
func HashOf(line []byte) Hash { return sha256.Sum256(line) }

// String is the form of the prev field: 64 lower-case hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MaxLineBytes is the longest line that a log may hold, newline not counted.
const MaxLineBytes = 64 << 10

// TimeLayout is the form of every time in a log: UTC with nine decimals.
const TimeLayout = "2006-01-02T15:04:05.000000000Z"

const (
	seqPrefix  = `{"seq":`
	prevPrefix = `,"prev":"`
	timePrefix = `","time":"`
)

// AppendLine appends the line with number seq after the line with hash prev, without a newline. The body is the rest of
// the JSON object: it begins with "time": and ends with the closing brace.
func AppendLine(dst []byte, seq uint64, prev Hash, body []byte) []byte {
	dst = append(dst, seqPrefix...)
	dst = strconv.AppendUint(dst, seq, 10)
	dst = append(dst, prevPrefix...)
	dst = hex.AppendEncode(dst, prev[:])
	dst = append(dst, `",`...)
	return append(dst, body...)
}

// Link is the part of a line that chains it. It is read by position, not by a JSON parser: two
// parsers may disagree on a line that names "seq" twice, and a verifier must not depend on which is right.
type Link struct {
	Seq  uint64
	Prev Hash
	rest []byte // from the first byte of the time on
}

// ParseLink reads {"seq":N,"prev":"HEX","time":" at the start of a line and the brace at its end.
func ParseLink(line []byte) (Link, bool) {
	var l Link
	rest, ok := cut(line, seqPrefix)
	if !ok || line[len(line)-1] != '}' {
		return l, false
	}
	digits := 0
	for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
		digits++
	}
	// 18 digits fit any integer type that a verifier may have.
	if digits == 0 || digits > 18 || rest[0] == '0' {
		return l, false
	}
	seq, err := strconv.ParseUint(string(rest[:digits]), 10, 64)
	if err != nil {
		return l, false
	}
	rest, ok = cut(rest[digits:], prevPrefix)
	if !ok || len(rest) < 2*sha256.Size {
		return l, false
	}
	for _, c := range rest[:2*sha256.Size] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') { // hex.Decode would take capitals too
			return l, false
		}
	}
	if _, err := hex.Decode(l.Prev[:], rest[:2*sha256.Size]); err != nil {
		return l, false
	}
	l.Seq = seq
	l.rest, ok = cut(rest[2*sha256.Size:], timePrefix)
	return l, ok
}

// prunedThrough reads the number that a pruned line states, which stands right after its event.
func (l Link) prunedThrough() (uint64, bool) {
	const event = `","event":"pruned","pruned_through":`
	if len(l.rest) < len(TimeLayout) {
		return 0, false
	}
	rest, ok := cut(l.rest[len(TimeLayout):], event)
	if !ok {
		return 0, false
	}
	digits := 0
	for digits < len(rest) && digits < 18 && rest[digits] >= '0' && rest[digits] <= '9' {
		digits++
	}
	n, err := strconv.ParseUint(string(rest[:digits]), 10, 64)
	return n, err == nil
}

func cut(b []byte, prefix string) ([]byte, bool) {
	if len(b) < len(prefix) || string(b[:len(prefix)]) != prefix {
		return nil, false
	}
	return b[len(prefix):], true
}
