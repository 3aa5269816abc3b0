// Package measure times a connection between two members of an overlay: round trips and throughput, bounded in bytes and
// in seconds on both sides. It refuses to choose whom it talks to, and to take a figure from an end that breaks its protocol.
package measure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// Bounds of measuring one path once: what `vallum isolate verify --measure` takes. Both sides hold them.
const (
	Time  = 2 * time.Second // of sending and waiting for answers; a slow link may take up to Grace more to drain
	Bytes = 256 << 20       // in both directions together
	Grace = 10 * time.Second
)

// Sizes of what is sent back and forth: a small packet, and one token's hidden state of a model with hidden size 8192 in
// 16 bits, which is what nodes with tensor parallelism exchange twice a layer.
const (
	small   = 64
	message = 16 << 10
)

// echoes is how many round trips of one size a round makes at most.
const echoes = 100

// Budget is what one round may take. The zero Budget measures nothing, and Round says so.
type Budget struct {
	Time  time.Duration
	Bytes int64 // in both directions together
}

// Rounds are budgets that together keep to Time and Bytes. Paths are compared by taking their rounds in turn, so that what
// slows the machine for a while slows both.
func Rounds() []Budget { return []Budget{{Time / 2, Bytes / 2}, {Time / 2, Bytes / 2}} }

// Transfer is bytes that went one way, and how long until the other side had counted them.
type Transfer struct {
	Bytes int64
	Took  time.Duration
}

// Round is what one round saw.
type Round struct {
	Small, Message []time.Duration // round trips
	Sent, Received Transfer
}

// Asker is the side that measures. It is not safe for use by several goroutines.
type Asker struct {
	p *pipe
}

// Ask begins to measure over a connection: each side shows the other its token. Over the overlay, where the peer is known
// by its address, both are zero. It returns an error when the other end does not answer within Grace, or is no Serve.
func Ask(c net.Conn, mine, theirs Token) (*Asker, error) {
	p := newPipe(c, 2*Bytes)
	if err := c.SetDeadline(time.Now().Add(Grace)); err != nil {
		return nil, err
	}
	if err := p.greet(mine); err != nil {
		return nil, err
	}
	if err := p.greeted(theirs); err != nil {
		return nil, err
	}
	return &Asker{p}, nil
}

// Round measures once, within the budget and Grace. After an error the connection is of no more use.
func (a *Asker) Round(b Budget) (r Round, err error) {
	each, part := b.Bytes/2-2*echoes*(small+message), b.Time/6
	if each <= 0 || part <= 0 {
		return r, fmt.Errorf("a budget of %s and %d bytes measures nothing", b.Time, b.Bytes)
	}
	if err := a.p.c.SetDeadline(time.Now().Add(b.Time + Grace)); err != nil {
		return r, err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"round trips", func() error { r.Small, err = a.echo(small, part); return err }},
		{"round trips of 16 KiB", func() error { r.Message, err = a.echo(message, part); return err }},
		{"what goes out", func() error { r.Sent, err = a.send(each, 2*part); return err }},
		{"what comes in", func() error { r.Received, err = a.receive(each, 2*part); return err }},
	} {
		err := step.do()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("the other end hung up")
		}
		if err != nil {
			return Round{}, fmt.Errorf("measuring %s: %w", step.what, err)
		}
	}
	return r, nil
}

func (a *Asker) echo(size int, span time.Duration) (took []time.Duration, err error) {
	for end := time.Now().Add(span); len(took) < echoes && (len(took) == 0 || time.Now().Before(end)); {
		begin := time.Now()
		if err := a.p.zeros(kindEcho, size); err != nil {
			return nil, err
		}
		if _, err := a.p.expect(kindEcho, size); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}

func (a *Asker) send(limit int64, span time.Duration) (t Transfer, err error) {
	begin := time.Now()
	if t.Bytes, err = a.p.flood(limit, begin.Add(span)); err != nil {
		return t, err
	}
	counted, err := a.p.expect(kindEnd, 8)
	if err != nil {
		return t, err
	}
	t.Took = time.Since(begin)
	if n := binary.BigEndian.Uint64(counted); n != uint64(t.Bytes) {
		return t, fmt.Errorf("the peer counted %d bytes of %d", n, t.Bytes)
	}
	return t, nil
}

func (a *Asker) receive(limit int64, span time.Duration) (t Transfer, err error) {
	begin := time.Now()
	ask := binary.BigEndian.AppendUint64(nil, uint64(limit))
	if err := a.p.write(kindSource, binary.BigEndian.AppendUint64(ask, uint64(span))); err != nil {
		return t, err
	}
	for {
		kind, payload, err := a.p.read()
		switch {
		case err != nil:
			return t, err
		case kind == kindData && t.Bytes+int64(len(payload)) > limit:
			return t, errors.New("the peer sends more than it was asked for")
		case kind == kindData:
			t.Bytes += int64(len(payload))
		case kind == kindEnd && len(payload) == 8 && binary.BigEndian.Uint64(payload) == uint64(t.Bytes):
			t.Took = time.Since(begin)
			return t, nil
		default:
			return t, errProtocol
		}
	}
}

// ErrNotOffered says that the peer does not measure the bare path: its operator has not asked for it.
var ErrNotOffered = errors.New("the peer does not offer it")

// Ticket is what the two ends show each other on the bare path, where an address proves nothing. It came over the overlay.
type Ticket struct{ Mine, Theirs Token }

// Bare asks the peer to meet this node beside the overlay, at the local port. The peer sets out at once.
func (a *Asker) Bare(port uint16) (t Ticket, err error) {
	if err := a.p.c.SetDeadline(time.Now().Add(Grace)); err != nil {
		return t, err
	}
	if err := a.p.write(kindBare, binary.BigEndian.AppendUint16(nil, port)); err != nil {
		return t, err
	}
	kind, payload, err := a.p.read()
	switch {
	case err != nil:
		return t, err
	case kind == kindNo && len(payload) == 0:
		return t, ErrNotOffered
	case kind != kindBare || len(payload) != len(t.Mine)+len(t.Theirs):
		return t, errProtocol
	}
	copy(t.Mine[:], payload)
	copy(t.Theirs[:], payload[len(t.Mine):])
	return t, nil
}

// Figures are what the rounds of one path come to.
type Figures struct {
	RoundTripMicros   float64 `json:"round_trip_us"`            // median, 64 bytes
	MessageMicros     float64 `json:"message_round_trip_us"`    // median, 16 KiB: one token of a large model
	MessageWorst      float64 `json:"message_round_trip_us_99"` // of a hundred, the slowest but one
	SentPerSecond     float64 `json:"sent_bytes_per_second"`    // one TCP connection
	ReceivedPerSecond float64 `json:"received_bytes_per_second"`
	Bytes             int64   `json:"bytes"` // that it took, round trips left out
}

// Sum makes figures of a path's rounds.
func Sum(rounds ...Round) (f Figures) {
	var little, big []time.Duration
	var out, in Transfer
	for _, r := range rounds {
		little, big = append(little, r.Small...), append(big, r.Message...)
		out.add(r.Sent)
		in.add(r.Received)
	}
	return Figures{
		RoundTripMicros: share(little, 50), MessageMicros: share(big, 50), MessageWorst: share(big, 99),
		SentPerSecond: out.rate(), ReceivedPerSecond: in.rate(), Bytes: out.Bytes + in.Bytes,
	}
}

func (t *Transfer) add(o Transfer) { t.Bytes, t.Took = t.Bytes+o.Bytes, t.Took+o.Took }

func (t Transfer) rate() float64 {
	if t.Took <= 0 {
		return 0
	}
	return float64(t.Bytes) / t.Took.Seconds()
}

// share is the value in microseconds below which percent of the values lie.
func share(all []time.Duration, percent int) float64 {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return float64(sorted[(len(sorted)-1)*percent/100]) / float64(time.Microsecond)
}
