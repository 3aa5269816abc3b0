package wire

import "bytes"

// Bounds of what is kept to find a prompt across the borders of packets. Each packet is searched whole whatever is kept.
const (
	maxStreams = 4096     // directions of connections of which borders are kept
	maxPieces  = 128      // borders of one direction: how far out of order its packets may come
	maxKept    = 32 << 20 // bytes of all
)

// piece is bytes at their place in a stream.
type piece struct {
	at   uint32
	data []byte
}

func (p piece) end() uint32 { return p.at + uint32(len(p.data)) }

// stream is one direction of a connection: the ends of the packets that came last, in whatever order they came. What
// lies between a packet's ends was searched when it came and is not kept.
type stream struct {
	pieces []piece // the oldest first
	bytes  int
	next   uint32 // where the next datagram stands, for protocols that do not number their bytes
}

// searcher looks for needles in packets and across their borders.
type searcher struct {
	needles [][]byte
	border  int // one byte less than the longest needle
	streams map[Flow]*stream
	kept    int
}

func newSearcher(needles [][]byte) *searcher {
	s := &searcher{needles: needles, streams: map[Flow]*stream{}}
	for _, n := range needles {
		s.border = max(s.border, len(n)-1)
	}
	return s
}

// found reports whether a needle lies in the packet, or across a border of it to what was seen of its stream before.
func (s *searcher) found(p packet) bool {
	if len(s.needles) == 0 || len(p.payload) == 0 {
		return false
	}
	found := s.contains(p.payload)
	if s.border == 0 {
		return found
	}
	st := s.stream(p.flow)
	new := piece{p.seq, p.payload}
	if !p.numbered {
		new.at = st.next
		st.next = new.end()
	}
	if !found {
		found = s.across(st, new)
	}
	s.keep(st, new)
	for other, o := range s.streams {
		if s.kept <= maxKept {
			break
		}
		s.forget(other, o)
	}
	return found
}

// forget drops what is kept of a stream: only a prompt across its next border can be missed by that.
func (s *searcher) forget(f Flow, st *stream) {
	s.kept -= st.bytes
	delete(s.streams, f)
}

func (s *searcher) contains(text []byte) bool {
	for _, n := range s.needles {
		if bytes.Contains(text, n) {
			return true
		}
	}
	return false
}

// across looks at what joins the piece to its neighbours on both sides.
func (s *searcher) across(st *stream, p piece) bool {
	b := uint32(s.border)
	if len(p.data) <= s.border {
		return s.window(st, p, p.at-b, p.end()+b)
	}
	return s.window(st, p, p.at-b, p.at+b) || s.window(st, p, p.end()-b, p.end()+b)
}

// window lays out what is known from one place in the stream to another and searches it. Places are numbers modulo 2³²,
// as TCP's are.
func (s *searcher) window(st *stream, p piece, from, to uint32) bool {
	text, known := make([]byte, to-from), make([]bool, to-from)
	lay := func(q piece) {
		first := int(int32(q.at - from))
		for i := max(0, -first); i < len(q.data) && first+i < len(text); i++ {
			text[first+i], known[first+i] = q.data[i], true
		}
	}
	for _, q := range st.pieces {
		if int32(q.end()-from) > 0 && int32(to-q.at) > 0 {
			lay(q)
		}
	}
	lay(p)
	for i := 0; i < len(text); {
		begin := i
		for i < len(text) && known[i] {
			i++
		}
		if s.contains(text[begin:i]) {
			return true
		}
		i++
	}
	return false
}

// keep remembers the ends of a piece, and forgets the oldest when there are too many.
func (s *searcher) keep(st *stream, p piece) {
	ends := []piece{p}
	if len(p.data) > 2*s.border {
		last := len(p.data) - s.border
		ends = []piece{{p.at, p.data[:s.border]}, {p.at + uint32(last), p.data[last:]}}
	}
	for _, e := range ends {
		if st.has(e) {
			continue // sent again, or seen on a second device
		}
		st.pieces = append(st.pieces, piece{e.at, bytes.Clone(e.data)})
		st.bytes, s.kept = st.bytes+len(e.data), s.kept+len(e.data)
	}
	for len(st.pieces) > maxPieces {
		n := len(st.pieces[0].data)
		st.bytes, s.kept = st.bytes-n, s.kept-n
		st.pieces = st.pieces[1:]
	}
}

func (st *stream) has(p piece) bool {
	for _, q := range st.pieces {
		if q.at == p.at && bytes.Equal(q.data, p.data) {
			return true
		}
	}
	return false
}

// stream finds what is kept of a flow; for a new one, some other's is forgotten when there are too many.
func (s *searcher) stream(f Flow) *stream {
	if st := s.streams[f]; st != nil {
		return st
	}
	for other, st := range s.streams {
		if len(s.streams) < maxStreams {
			break
		}
		s.forget(other, st)
	}
	st := &stream{}
	s.streams[f] = st
	return st
}
