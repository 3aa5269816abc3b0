package chain

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"iter"
)

// RawLine is one line of a segment as it stands there.
type RawLine struct {
	Bytes  []byte // without newline; good until the next line
	Number int    // from 1
	Offset int64  // of its first byte in the segment
	Torn   bool   // the file ends without a newline
	Long   bool   // longer than MaxLineBytes; Bytes is its beginning
}

// Lines reads a segment. It ends with an error, or after the last line, or after the first that is torn or too long.
func Lines(fsys fs.FS, name string) iter.Seq2[RawLine, error] {
	return func(yield func(RawLine, error) bool) {
		f, err := fsys.Open(name)
		if err != nil {
			yield(RawLine{}, err)
			return
		}
		defer func() { _ = f.Close() }() // only read
		r := bufio.NewReaderSize(f, MaxLineBytes+1)
		var offset int64
		for number := 1; ; number++ {
			b, err := r.ReadSlice('\n')
			if len(b) == 0 && errors.Is(err, io.EOF) {
				return
			}
			l := RawLine{Bytes: b, Number: number, Offset: offset}
			switch {
			case err == nil:
				l.Bytes = b[:len(b)-1]
			case errors.Is(err, io.EOF):
				l.Torn = true
			case errors.Is(err, bufio.ErrBufferFull):
				l.Long = true
			default:
				yield(RawLine{}, err)
				return
			}
			offset += int64(len(b))
			if !yield(l, nil) || l.Torn || l.Long {
				return
			}
		}
	}
}
