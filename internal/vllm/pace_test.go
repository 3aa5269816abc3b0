package vllm

import (
	"fmt"
	"strings"
	"testing"
)

// What vLLM joins for a slow caller is counted nearly as if it had not, and what it does not join is counted as events.
func TestJoinedTokensAreEstimated(t *testing.T) {
	words := []string{" the", " quick", ",", " brown", "\\n", " fox", " jumps", " over", " it", " and", "s", " is", " größer", "日本"}
	content := func(text string) string {
		return `{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"` + text + `"},"logprobs":null,"finish_reason":null}]}`
	}
	anthropic := func(text string) string {
		return `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"` + text + `"}}`
	}
	tool := func(text string) string {
		return `{"id":"chatcmpl-1","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"` + text + `"}}]},"finish_reason":null}]}`
	}
	logprobs := func(text string) string {
		one := `{"token":" the","logprob":-0.1,"bytes":[32,116],"top_logprobs":[{"token":" a","logprob":-1.5,"bytes":[32,97]},{"token":" an","logprob":-2.5,"bytes":[32,97,110]}]},`
		return `{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"` + text + `"},"logprobs":{"content":[` + strings.Repeat(one, 1+strings.Count(text, " ")) + `]},"finish_reason":null}]}`
	}
	for name, event := range map[string]func(string) string{"chat": content, "messages": anthropic, "tools": tool, "log probabilities": logprobs} {
		for _, each := range []int{1, 10, 100, 1000} {
			var p Pace
			const tokens = 5000
			var events int64
			send := func(n int) {
				var text strings.Builder
				for i := range n {
					text.WriteString(words[i%len(words)])
				}
				p.Event([]byte(event(text.String())))
				events++
			}
			for range 20 { // a caller that reads at first
				send(1)
			}
			for range tokens / each {
				send(each)
			}
			got, all := events+p.Joined(), int64(tokens+20)
			if each == 1 && got != all || got < all/3 || got > 3*all {
				t.Errorf("%s, %d tokens in each event: counted %d of %d", name, each, got, all)
			}
		}
	}
}

// The events of a stream are of several kinds and begin with a longer one: each is measured by the shortest of its own, from when that is known.
func TestPaceMeasuresEachKindByItself(t *testing.T) {
	var p Pace
	p.Event([]byte(`{"choices":[{"delta":{"role":"assistant","content":"","reasoning_content":null}}]}`))
	for range 50 {
		p.Event([]byte(`{"choices":[{"delta":{"content":" the"}}]}`))
	}
	for range 50 {
		p.Event([]byte(`{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":" the"}}]}}]}`))
	}
	if n := p.Joined(); n != 0 {
		t.Fatalf("%d tokens more than events, each of which has one", n)
	}
	p.Event([]byte(`{"choices":[{"delta":{"content":" the the the the the the the the the the the the"}}]}`))
	if n := p.Joined(); n < 4 || n > 11 {
		t.Errorf("12 tokens in one event: %d more than one", n)
	}
}

// An event is never less than one token, and no length overflows.
func TestPaceNeverTakesAway(t *testing.T) {
	var p Pace
	for _, size := range []int{0, 1, 2, 1 << 20, 3, 0, 1 << 10} {
		before := p.Joined()
		p.Event([]byte(strings.Repeat("x", size)))
		p.Event(fmt.Appendf(nil, `"logprobs":{%s`, strings.Repeat("x", size)))
		if p.Joined() < before {
			t.Errorf("after %d bytes: %d, before %d", size, p.Joined(), before)
		}
	}
}
