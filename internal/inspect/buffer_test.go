package inspect

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
)

// What one request made does not change when another one reads its body into the same memory.
func TestMemoryIsUsedAgainOnlyAfterClose(t *testing.T) {
	table := propertyTable()
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 300 {
				text := strings.Repeat(fmt.Sprintf("%d-%d ", g, i), 1+i*7%900)
				r := jsonRequest(table, fmt.Sprintf(`{"%s":1,"model":"m%d-%d","free":"%s","opts":{"a":%d,"b":0}}`, text[:3], g, i, text, i))
				if i%3 == 0 {
					r.Length = -1
				}
				d, v := Read(r, Default())
				if v.Refused() {
					t.Errorf("refused: %s", v.Message())
					return
				}
				f := d.Facts()
				b, err := d.Rewrite([]policy.Edit{{Name: "n", Pointer: "/n", Value: "7"}})
				if err != nil || d.Close() != nil || d.Close() != nil {
					t.Errorf("rewriting and closing: %v", err)
					return
				}
				runtime.Gosched()
				want := fmt.Sprintf(`{"n":7,"free":"%s","opts":{"a":%d}}`, text, i)
				if string(b.Bytes) != want || f.Model != fmt.Sprintf("m%d-%d", g, i) || len(f.UnknownKeys) != 1 || !strings.HasPrefix(f.UnknownKeys[0], "/"+text[:2]) {
					t.Errorf("%.80s, want %.80s; facts %v", b.Bytes, want, f)
					return
				}
				if b.Free(); b.Bytes != nil || b.Reader != nil {
					t.Error("a body that was given back still has its bytes")
				}
			}
		})
	}
	all.Wait()
}

// A closed document has no bytes any more; an empty body in its place would be another request than was granted.
func TestClosedDocumentIsNotRewritten(t *testing.T) {
	d := mustRead(t, jsonRequest(propertyTable(), `{"n":1}`))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := d.Rewrite(nil); err == nil {
		t.Errorf("a closed document became %q", b.Bytes)
	}
}

// Bodies without a length arrive whole, whatever their size is beside the (64<<10)s', and no more than the limit.
func TestBodiesWithoutLength(t *testing.T) {
	table := propertyTable()
	for _, size := range []int{20, (4 << 10) - 1, (4 << 10), (4 << 10) + 1, (4 << 10) + (64 << 10), (4 << 10) + 3*(64<<10) + 7, 300 << 10} {
		body := `{"free":"` + strings.Repeat("x", size-len(`{"free":""}`)) + `"}`
		for name, reader := range map[string]io.Reader{
			"plain": strings.NewReader(body), "with EOF": iotest.DataErrReader(strings.NewReader(body)), "halves": iotest.HalfReader(strings.NewReader(body)),
		} {
			r := jsonRequest(table, body)
			r.Length, r.Body = -1, reader
			if got := mustRewrite(t, mustRead(t, r)).Bytes; string(got) != body {
				t.Errorf("%s, %d bytes: %d bytes go up", name, size, len(got))
			}
		}
		lim := Default()
		lim.MaxJSONBytes = int64(size - 1)
		r := jsonRequest(table, body)
		r.Length = -1
		if _, v := Read(r, lim); v.Reason() != verdict.BodyTooLarge {
			t.Errorf("%d bytes where %d may be: refused %v, %v", size, size-1, v.Refused(), v.Reason())
		}
	}
}

// A body without an end takes its limit, not a multiple of it.
func TestEndlessBodyTakesItsLimit(t *testing.T) {
	r := jsonRequest(propertyTable(), "")
	var before, after runtime.MemStats
	spaces := bytes.Repeat([]byte(" "), (64 << 10))
	r.Length, r.Body = -1, readerFunc(func(p []byte) (int, error) { return copy(p, spaces), nil })
	runtime.ReadMemStats(&before)
	if _, v := Read(r, Default()); v.Reason() != verdict.BodyTooLarge {
		t.Fatalf("refused %v, %v", v.Refused(), v.Reason())
	}
	runtime.ReadMemStats(&after)
	if took, most := after.TotalAlloc-before.TotalAlloc, uint64(Default().MaxJSONBytes)*9/8; took > most {
		t.Errorf("%d bytes were allocated for a body of at most %d", took, Default().MaxJSONBytes)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
