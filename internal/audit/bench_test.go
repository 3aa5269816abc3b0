package audit

import (
	"fmt"
	"testing"
	"time"
)

func benchRecord() Record {
	return Record{
		Time: time.Now(), Event: Ended, ID: "0193a4b2c7d87e6f9a1b2c3d4e5f6071", ClientRequestID: "req_2f1c0a", Principal: "app", KeyID: "k7f3a9c1",
		Tenant: "app", Remote: "198.51.100.17", Operation: "chat.create", Model: "llama-3-8b", Upstream: "llama", Rule: "roles.chat-team", Status: 200,
		BytesIn: 1043, BytesOut: 2310, PromptTokens: 212, CachedTokens: 128, CompletionTokens: 64, Usage: UsageCounted, ReservedTokens: 4096,
		TTFTMillis: 38.221, UpstreamMillis: 812.004, DurationMillis: 812.911, Ended: EndedComplete, Edits: []string{"model", "cache_salt"},
	}
}

func BenchmarkEncode(b *testing.B) {
	r := benchRecord()
	buf := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		out, err := appendBody(buf[:0], &r)
		if err != nil {
			b.Fatal(err)
		}
		buf = out
	}
	b.SetBytes(int64(len(buf)))
}

// BenchmarkAppend is one line, from the call to the acknowledgement after write(2), amortised.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			l := mustOpen(b, newDir(b), Options{Sync: SyncNone})
			defer mustClose(b, l)
			r := benchRecord()
			b.ReportAllocs()
			b.SetParallelism(writers)
			if writers == 1 {
				for b.Loop() {
					mustAppend(b, l, r)
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := l.Append(r); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	dir := newDir(b)
	l := mustOpen(b, dir, Options{Sync: SyncNone})
	for range 20_000 {
		mustAppend(b, l, benchRecord())
	}
	mustClose(b, l)
	key := publicKey(b, dir)
	for b.Loop() {
		if r, err := Verify(dir, key, nil); err != nil || !r.OK() {
			b.Fatal(r, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/20_000, "ns/line")
}
