package vllm

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// Release is a version of vLLM, ordered as PEP 440 orders it: 0.33.0rc1 is before 0.33.0, 0.11.2.post1 after 0.11.2.
// A local part ("+cpu", "+cu129") says how it was built and takes no part in the order. The zero Release is unknown.
type Release struct {
	major, minor, patch int
	fourth              int // of 0.10.1.1; 0 when there is none
	stage               stage
	stageN, post, dev   int // post and dev are one more than written, so that 0 is absent
	known               bool
}

type stage int8

const (
	devStage stage = iota - 4 // a development version of a final release comes before its alphas
	alpha
	beta
	candidate
	final
)

// maxReleaseText is far more than any version that vLLM has printed ("0.11.1rc2.dev123+gabcdef012.d20260101").
const maxReleaseText = 64

// ParseRelease reads what GET /version or a wheel's name says: "0.8.5", "0.10.1.1", "0.11.2.post1", "0.33.0rc1", "0.32.0+cpu",
// "v0.9.2". Anything else is an error and gives the unknown Release.
func ParseRelease(s string) (Release, error) {
	bad := fmt.Errorf("release %q: want a version such as 0.32.0 or 0.33.0rc1", s[:min(len(s), maxReleaseText)])
	if len(s) > maxReleaseText {
		return Release{}, bad
	}
	rest, _, _ := strings.Cut(strings.TrimPrefix(s, "v"), "+")
	r := Release{known: true, stage: final}
	for i, p := range []*int{&r.major, &r.minor, &r.patch, &r.fourth} {
		if i > 0 {
			after, ok := strings.CutPrefix(rest, ".")
			if !ok || after == "" || !isDigit(after[0]) {
				if i == 1 {
					return Release{}, bad // one number alone is no version of vLLM
				}
				break
			}
			rest = after
		}
		var ok bool
		if *p, rest, ok = number(rest); !ok {
			return Release{}, bad
		}
	}
	if !r.suffixes(rest) {
		return Release{}, bad
	}
	return r, nil
}

// suffixes reads what follows the numbers, in PEP 440's order.
func (r *Release) suffixes(rest string) bool {
	ok := true
	for _, p := range []struct {
		text string
		at   stage
	}{{"a", alpha}, {"b", beta}, {"rc", candidate}} {
		if after, found := strings.CutPrefix(rest, p.text); found {
			r.stage = p.at
			if r.stageN, rest, ok = number(after); !ok {
				return false
			}
			break
		}
	}
	if after, found := strings.CutPrefix(rest, ".post"); found {
		if r.post, rest, ok = number(after); !ok {
			return false
		}
		r.post++
	}
	if after, found := strings.CutPrefix(rest, ".dev"); found {
		if r.dev, rest, ok = number(after); !ok {
			return false
		}
		r.dev++
		if r.stage == final && r.post == 0 {
			r.stage = devStage
		}
	}
	return rest == ""
}

// number reads decimal digits, at most nine of them.
func number(s string) (n int, rest string, ok bool) {
	end := 0
	for end < len(s) && isDigit(s[end]) {
		end++
	}
	if end == 0 || end > 9 {
		return 0, s, false
	}
	n, err := strconv.Atoi(s[:end])
	return n, s[end:], err == nil
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// Known reports whether the release is known at all. An upstream that does not say its version has an unknown one.
func (r Release) Known() bool { return r.known }

// Compare is negative when r is older than other, positive when newer. The unknown Release is older than all.
func (r Release) Compare(other Release) int {
	if r.known != other.known {
		if other.known {
			return -1
		}
		return 1
	}
	// A version without .devN comes after the same with one.
	dev := func(v Release) int {
		if v.dev == 0 {
			return int(^uint32(0) >> 1)
		}
		return v.dev
	}
	return cmp.Or(
		cmp.Compare(r.major, other.major), cmp.Compare(r.minor, other.minor), cmp.Compare(r.patch, other.patch), cmp.Compare(r.fourth, other.fourth),
		cmp.Compare(r.stage, other.stage), cmp.Compare(r.stageN, other.stageN),
		cmp.Compare(r.post, other.post), cmp.Compare(dev(r), dev(other)),
	)
}

// String is the release in PEP 440's spelling without a local part; "unknown" for the zero Release.
func (r Release) String() string {
	if !r.known {
		return "unknown"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d.%d.%d", r.major, r.minor, r.patch)
	if r.fourth > 0 {
		fmt.Fprintf(&b, ".%d", r.fourth)
	}
	if mark := map[stage]string{alpha: "a", beta: "b", candidate: "rc"}[r.stage]; mark != "" {
		fmt.Fprintf(&b, "%s%d", mark, r.stageN)
	}
	if r.post > 0 {
		fmt.Fprintf(&b, ".post%d", r.post-1)
	}
	if r.dev > 0 {
		fmt.Fprintf(&b, ".dev%d", r.dev-1)
	}
	return b.String()
}

// Exists reports whether the release serves the operation, under some condition: see Opens. An unknown release serves
// none, and no release serves what is Ours.
func (op *Operation) Exists(r Release) bool {
	return r.known && !op.Ours && within(r, op.Since, op.Until)
}

// OpensIn is the condition under which the release registers the operation; "" when it does not.
func (op *Operation) OpensIn(r Release) string {
	if !op.Exists(r) {
		return ""
	}
	condition := ""
	for i, o := range op.Opens {
		if i == 0 || within(r, o.From, "") {
			condition = o.Condition // ranges are in order and without gaps: the last that has begun holds
		}
	}
	return condition
}

// GuardedIn reports whether the release's own --api-key covers the operation. It says no when that is not known.
func (op *Operation) GuardedIn(r Release) bool {
	if !op.Exists(r) {
		return false
	}
	guarded := false
	for _, g := range op.Guarded {
		if within(r, g.From, "") {
			guarded = g.Guarded
		}
	}
	return guarded
}

// Salted reports whether the release reads a cache_salt in the operation's body. Where it does not, prefixes are
// shared between tenants. It says no for an unknown release.
func (op *Operation) Salted(r Release) bool {
	return op.Salt != "" && op.Exists(r) && within(r, op.Salt, "")
}

// within reports whether from <= r <= to; an empty bound is none.
func within(r Release, from, to string) bool {
	return (from == "" || r.Compare(mustRelease(from)) >= 0) && (to == "" || r.Compare(mustRelease(to)) <= 0)
}

// mustRelease reads a release of the embedded catalogue; a test has read them all. The catalogue names a few, and each
// request asks for some of them.
func mustRelease(s string) Release {
	if r, ok := known.Load(s); ok {
		return r.(Release)
	}
	r, err := ParseRelease(s)
	if err != nil {
		panic("vllm: " + err.Error())
	}
	known.Store(s, r)
	return r
}

var known sync.Map // of the catalogue's releases, as Release by their text
