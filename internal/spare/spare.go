// Package spare lends memory that one request uses after the other: buffers for bodies, decoders with their stacks of names.
// It refuses to keep what is large, and knows nothing of what lies in it: who gives memory back must refer to it no more.
package spare

import (
	"bytes"
	"io"
	"math/bits"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// Buffer is the memory of one body.
type Buffer struct{ B []byte }

// Buffers of 2 KiB to 256 KiB are kept. Each is at most twice as large as what was asked for (but 2 KiB): what requests
// hold is bounded by what they declare.
const (
	leastBits   = 11
	sizes       = 8
	believed    = 1 << 20  // of a declared length, before any byte has arrived
	firstUnsure = 4 << 10  // of a body whose length is not known
	segment     = 64 << 10 // and of what follows
)

var buffers [sizes]sync.Pool

// Borrow gives an empty buffer with room for n bytes at least.
func Borrow(n int) *Buffer {
	size := max(bits.Len(uint(max(n, 1)-1)), leastBits) - leastBits
	if size >= sizes {
		return &Buffer{make([]byte, 0, n)}
	}
	if b, ok := buffers[size].Get().(*Buffer); ok {
		return b
	}
	return &Buffer{make([]byte, 0, 1<<(size+leastBits))}
}

// GiveBack lets another body have the memory. A nil Buffer has none.
func (b *Buffer) GiveBack() {
	if b == nil {
		return
	}
	size := bits.Len(uint(cap(b.B))) - 1 - leastBits
	if size < 0 || size >= sizes || cap(b.B) != 1<<(size+leastBits) {
		return
	}
	b.B = b.B[:0]
	buffers[size].Put(b)
}

// fill reads until the buffer is full or the source has ended, which it reports.
func (b *Buffer) fill(source io.Reader) (ended bool, err error) {
	for len(b.B) < cap(b.B) {
		n, err := source.Read(b.B[len(b.B):cap(b.B)])
		b.B = b.B[:len(b.B)+n]
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// ReadAll reads a source to its end, which is to bound it. Its declared length, when it is above 0, is believed as far
// as a megabyte. Without one it is read in segments, which are joined when it has ended: a source that fails has taken
// no more than it gave.
func ReadAll(source io.Reader, length int64) (*Buffer, error) {
	if length <= 0 {
		return readUnsure(source)
	}
	const eof = 1 // room for the last Read, which says EOF
	b := Borrow(int(min(length, believed)) + eof)
	for {
		ended, err := b.fill(source)
		if err != nil {
			b.GiveBack()
			return nil, err
		}
		if ended {
			return b, nil
		}
		room := 2 * len(b.B)
		if left := length + eof - int64(len(b.B)); left > 0 {
			room = int(min(int64(room), length+eof))
		}
		larger := Borrow(room)
		larger.B = append(larger.B, b.B...)
		b.GiveBack()
		b = larger
	}
}

func readUnsure(source io.Reader) (*Buffer, error) {
	all, total := []*Buffer{Borrow(firstUnsure)}, 0
	for {
		last := all[len(all)-1]
		ended, err := last.fill(source)
		total += len(last.B)
		switch {
		case err != nil:
			for _, b := range all {
				b.GiveBack()
			}
			return nil, err
		case !ended:
			all = append(all, Borrow(segment))
			continue
		case len(all) == 1:
			return last, nil
		}
		whole := Borrow(total)
		for _, b := range all {
			whole.B = append(whole.B, b.B...)
			b.GiveBack()
		}
		return whole, nil
	}
}

// Decoder is a decoder and what it reads from. Its stacks of names are most of what reading a short text costs.
type Decoder struct {
	jsontext.Decoder
	source bytes.Buffer
}

var decoders = sync.Pool{New: func() any { return new(Decoder) }}

// Decode gives a decoder of the text.
func Decode(text []byte, options ...jsontext.Options) *Decoder {
	d := decoders.Get().(*Decoder)
	d.Begin(text, options...)
	return d
}

// Begin lets the decoder read another text, and forget the one before. The zero Decoder can begin.
func (d *Decoder) Begin(text []byte, options ...jsontext.Options) {
	d.source = *bytes.NewBuffer(text)
	d.Reset(&d.source, options...)
}

// GiveBack lets another text be read.
func (d *Decoder) GiveBack() {
	d.Begin(nil) // or it would keep the text
	decoders.Put(d)
}
