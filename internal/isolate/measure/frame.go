package measure

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Kinds of frames: a byte of kind, four of length, the payload. What is not one of these ends the connection.
const (
	kindEcho   = 'e' // comes back as it is
	kindData   = 'd' // is counted and thrown away
	kindEnd    = 'f' // after data; 8 bytes: how many there were
	kindSource = 'g' // asks for data: 8 bytes of how much, 8 of for how many nanoseconds
	kindBare   = 'b' // asks to meet beside the overlay: 2 bytes of port; the answer is a Ticket
	kindNo     = 'n' // refuses that
)

// magic begins both directions, before the token. Its last byte is the protocol's version.
const magic = "vlmeasr1"

// maxFrame is the largest payload.
const maxFrame = 64 << 10

// Token is what an end shows to the other. Over the overlay it is zero.
type Token [16]byte

var (
	errGreeting = errors.New("the other end is not `vallum isolate verify --measure-serve` of this version, or not the one that was expected")
	errProtocol = errors.New("the other end breaks the protocol of measuring")
)

// pipe is a connection with frames, that reads no more than limit bytes.
type pipe struct {
	c          net.Conn
	in         *bufio.Reader
	out, buf   []byte // out stays zero behind its header but for what write copies in
	got, limit int64
}

func newPipe(c net.Conn, limit int64) *pipe {
	return &pipe{c: c, in: bufio.NewReader(c), out: make([]byte, 5+maxFrame), buf: make([]byte, maxFrame), limit: limit}
}

func (p *pipe) greet(t Token) error {
	_, err := p.c.Write(append([]byte(magic), t[:]...))
	return err
}

func (p *pipe) greeted(want Token) error {
	b := make([]byte, len(magic)+len(want))
	n, err := io.ReadFull(p.in, b)
	// What is wrong is wrong before it is complete: an answer of another protocol may be short.
	if m := min(n, len(magic)); string(b[:m]) != magic[:m] {
		return errGreeting
	}
	if err != nil {
		return fmt.Errorf("waiting for the other end's greeting: %w", err)
	}
	if Token(b[len(magic):]) != want {
		return errGreeting
	}
	return nil
}

// write sends a frame with a short payload.
func (p *pipe) write(kind byte, payload []byte) error {
	copy(p.out[5:], payload)
	err := p.zeros(kind, len(payload))
	clear(p.out[5 : 5+len(payload)])
	return err
}

// zeros sends a frame of so many zeros, or of what write has put there.
func (p *pipe) zeros(kind byte, size int) error {
	p.out[0] = kind
	binary.BigEndian.PutUint32(p.out[1:], uint32(size))
	_, err := p.c.Write(p.out[:5+size])
	return err
}

// read returns the next frame; its payload holds until the one after. io.EOF is the end between two frames.
func (p *pipe) read() (kind byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(p.in, head[:]); err != nil {
		return 0, nil, err
	}
	size := int64(binary.BigEndian.Uint32(head[1:]))
	if size > maxFrame {
		return 0, nil, errProtocol
	}
	if p.got += int64(len(head)) + size; p.got > p.limit {
		return 0, nil, fmt.Errorf("the other end sends more than the %d bytes that it may", p.limit)
	}
	if _, err := io.ReadFull(p.in, p.buf[:size]); err != nil {
		return 0, nil, err
	}
	return head[0], p.buf[:size], nil
}

// expect reads the frame that has to come now.
func (p *pipe) expect(kind byte, size int) ([]byte, error) {
	got, payload, err := p.read()
	if err != nil {
		return nil, err
	}
	if got != kind || len(payload) != size {
		return nil, errProtocol
	}
	return payload, nil
}

// flood sends data until the limit or the end, and how much it was.
func (p *pipe) flood(limit int64, end time.Time) (sent int64, err error) {
	for sent < limit && time.Now().Before(end) {
		size := min(maxFrame, limit-sent)
		if err := p.zeros(kindData, int(size)); err != nil {
			return sent, err
		}
		sent += size
	}
	return sent, p.write(kindEnd, binary.BigEndian.AppendUint64(nil, uint64(sent)))
}
