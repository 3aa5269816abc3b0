package inspect

import (
	"io"
	"math/bits"
	"sync"
)

// buffer is the memory of one body. When it is given back the next body lies in it, so nothing may point into it then.
type buffer struct{ b []byte }

// Buffers of 2 KiB to 256 KiB are used again. Each is at most twice as large as what was asked for (but 2 KiB): what
// requests hold is bounded by what they declare.
const (
	leastBits   = 11
	sizes       = 8
	firstUnsure = 4 << 10  // of a body whose length is not known
	segment     = 64 << 10 // and of what follows
)

var spare [sizes]sync.Pool

// borrow gives an empty buffer with room for n bytes at least.
func borrow(n int) *buffer {
	size := max(bits.Len(uint(max(n, 1)-1)), leastBits) - leastBits
	if size >= sizes {
		return &buffer{make([]byte, 0, n)}
	}
	if b, ok := spare[size].Get().(*buffer); ok {
		return b
	}
	return &buffer{make([]byte, 0, 1<<(size+leastBits))}
}

// giveBack lets another body have the memory.
func (b *buffer) giveBack() {
	size := bits.Len(uint(cap(b.b))) - 1 - leastBits
	if size < 0 || size >= sizes || cap(b.b) != 1<<(size+leastBits) {
		return
	}
	b.b = b.b[:0]
	spare[size].Put(b)
}

// fill reads until the buffer is full or the source has ended, which it reports.
func (b *buffer) fill(source *counted) (ended bool, err error) {
	for len(b.b) < cap(b.b) {
		n, err := source.Read(b.b[len(b.b):cap(b.b)])
		b.b = b.b[:len(b.b)+n]
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, source.failure(err)
		}
	}
	return false, nil
}

// readDeclared reads a body of a declared length; no more is believed of it at first than firstBuffer.
func readDeclared(source *counted) (*buffer, error) {
	const eof = 1 // room for the last Read, which says EOF
	length := int(source.length)
	b := borrow(min(length, firstBuffer) + eof)
	for {
		ended, err := b.fill(source)
		if err != nil {
			b.giveBack()
			return nil, err
		}
		if ended {
			return b, nil
		}
		larger := borrow(min(2*len(b.b), length+eof))
		larger.b = append(larger.b, b.b...)
		b.giveBack()
		b = larger
	}
}

// readUnsure reads a body of unknown length in segments, and joins them when it has ended: what is too large for the
// limit takes no more than the limit.
func readUnsure(source *counted) (*buffer, error) {
	all, total := []*buffer{borrow(firstUnsure)}, 0
	for {
		last := all[len(all)-1]
		ended, err := last.fill(source)
		total += len(last.b)
		switch {
		case err != nil:
			for _, b := range all {
				b.giveBack()
			}
			return nil, err
		case !ended:
			all = append(all, borrow(segment))
			continue
		case len(all) == 1:
			return last, nil
		}
		whole := borrow(total)
		for _, b := range all {
			whole.b = append(whole.b, b.b...)
			b.giveBack()
		}
		return whole, nil
	}
}
