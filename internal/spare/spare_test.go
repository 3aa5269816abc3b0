package spare

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
)

// What is lent is at most twice what was asked for, so that nobody holds much by asking for little.
func TestBuffersFit(t *testing.T) {
	for _, n := range []int{0, 1, 2 << 10, 2<<10 + 1, 5000, 256 << 10, 256<<10 + 1, 3 << 20} {
		for range 3 {
			b := Borrow(n)
			if len(b.B) != 0 || cap(b.B) < n || cap(b.B) > max(2*n, 2<<10) {
				t.Errorf("for %d bytes: %d of %d", n, len(b.B), cap(b.B))
			}
			b.B = append(b.B, "what lay in it"...)
			b.GiveBack()
		}
	}
	odd := &Buffer{make([]byte, 0, 3000)}
	odd.GiveBack() // is in no size: it must not come back as one of 2 KiB or 4 KiB
	(*Buffer)(nil).GiveBack()
	if b := Borrow(4000); cap(b.B) < 4000 {
		t.Errorf("%d bytes", cap(b.B))
	}
}

func TestReadAll(t *testing.T) {
	for _, size := range []int{0, 1, 4 << 10, 4<<10 + 1, 68 << 10, 200_000, 3 << 20} {
		want := strings.Repeat("x", size)
		for _, length := range []int64{-1, int64(size), 1, 10 << 20} { // a wrong length is for the source to notice
			if b, err := ReadAll(strings.NewReader(want), length); err != nil || string(b.B) != want {
				t.Errorf("%d bytes, %d declared: %d, %v", size, length, len(b.B), err)
			}
		}
	}
	broken := errors.New("broken")
	for _, length := range []int64{-1, 100_000} {
		if _, err := ReadAll(iotest.TimeoutReader(bytes.NewReader(make([]byte, 90_000))), length); !errors.Is(err, iotest.ErrTimeout) {
			t.Errorf("%d declared: %v", length, err)
		}
		if _, err := ReadAll(iotest.ErrReader(broken), length); !errors.Is(err, broken) {
			t.Errorf("%d declared: %v", length, err)
		}
	}
}

func TestADecoderForgetsWhatItRead(t *testing.T) {
	d := Decode([]byte(`{"a":`))
	_, _ = d.ReadToken()
	d.GiveBack()
	d = Decode([]byte(`"b"`))
	defer d.GiveBack()
	if v, err := d.ReadValue(); err != nil || string(v) != `"b"` || d.StackDepth() != 0 {
		t.Errorf("%s, %v", v, err)
	}
}
