package policy

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/vallum/vallum/internal/vllm"
)

// Each row is a request, and the most that vLLM can make of it.
func TestTokensBoundWhatARequestCanUse(t *testing.T) {
	for _, row := range []struct {
		name string
		cost cost
		most int64 // the context
		want int64
	}{
		{"nothing is generated but a token for each input", cost{output: -1, prompts: 3, choices: 1, bytes: 70}, 1000, 73},
		{"a text that vLLM chunks is longer than the context", cost{output: -1, prompts: 1, choices: 1, bytes: 7000}, 1000, 7001},
		{"prompt and cap", cost{output: 10, prompts: 1, choices: 1, bytes: 70}, 1000, 80},
		{"the prompt once, the cap for each choice", cost{output: 10, prompts: 1, choices: 4, bytes: 70}, 1000, 110},
		{"the cap for each choice of each prompt", cost{output: 10, prompts: 3, choices: 4, bytes: 70}, 1000, 190},
		{"no cap: what the context holds", cost{prompts: 1, choices: 1, bytes: 70}, 1000, 1000},
		{"no cap, for each choice of each prompt", cost{prompts: 3, choices: 4, bytes: 70}, 1000, 12_000},
		{"no cap and no context that is known", cost{prompts: 1, choices: 1, bytes: 70}, 0, unknownContext},
		{"a cap and no context that is known", cost{output: 10, prompts: 1, choices: 1, bytes: 70}, 0, 80},
		{"a large cap and no context that is known", cost{output: 200_000, prompts: 1, choices: 1, bytes: 70}, 0, 200_070},
		{"a cap of more than the context holds", cost{output: 5000, prompts: 1, choices: 1, bytes: 70}, 1000, 1000},
		{"as much for each of two", cost{output: 5000, prompts: 2, choices: 1, bytes: 90_000}, 1000, 2000},
		{"documents for each row of a batch", cost{output: 10, prompts: 5, choices: 1, bytes: 90, shared: 40}, 1000, 300},
		{"a query for each of its documents", cost{output: -1, prompts: 101, choices: 1, bytes: 6000, shared: 5000}, 512, 506_101},
		{"a picture of 100 bytes fills the context", cost{output: 10, prompts: 1, choices: 1, bytes: 170, media: 1}, 1000, 1000},
		{"a picture, and no context that is known", cost{output: 10, prompts: 1, choices: 1, bytes: 170, media: 1}, 0, unknownContext},
		{"two pictures, each embedded by itself", cost{output: -1, prompts: 1, choices: 1, bytes: 170, media: 2}, 1000, 2170},
		{"one picture against ten", cost{output: -1, prompts: 11, choices: 1, bytes: 170, media: 1}, 1000, 11_170},
		{"sound: what vLLM decodes at most, in 21 pieces", cost{heard: true, prompts: 1, choices: 1, bytes: 9 << 20, shared: 80}, 448, 60_000 + 21*448},
		{"sound with a cap for each piece", cost{heard: true, output: 8, prompts: 1, choices: 1, bytes: 400, shared: 80}, 448, 60_000 + 21*88},
		{"sound with beams", cost{heard: true, prompts: 1, choices: 4, bytes: 400, shared: 80}, 448, 60_000 + 21*4*448},
	} {
		if got := (Grant{cost: row.cost}).Tokens(Bounds{Context: row.most}); got != row.want {
			t.Errorf("%s: %d tokens, want %d", row.name, got, row.want)
		}
	}
	if got := (Grant{cost: cost{heard: true, output: 8, prompts: 1, choices: 1, shared: 80}}).Tokens(Bounds{Context: 448, Sound: 30}); got != 3000+2*88 {
		t.Errorf("a server that decodes 30 s: %d tokens", got)
	}
}

func TestSoundCostsItsSecondsAndItsText(t *testing.T) {
	g := Grant{cost: cost{heard: true, prompts: 1, choices: 1, shared: 80}}
	for _, row := range []struct{ seconds, text, prompt, completion int64 }{
		{1, 300, 100, 300},
		{1, 3000, 100, 448},    // more text than one piece can have: JSON around it
		{59, 9000, 5900, 1344}, // three pieces
		{601, 10, 60_100, 10},  // more than was reserved: what vLLM heard counts
		{0, 0, 100, 1},
		{-5, -5, 100, 1},
	} {
		if prompt, completion := g.Heard(Bounds{Context: 448}, row.seconds, row.text); prompt != row.prompt || completion != row.completion {
			t.Errorf("%d s, %d bytes: %d and %d tokens, want %d and %d", row.seconds, row.text, prompt, completion, row.prompt, row.completion)
		}
	}
}

// What comes in is a caller's: no number makes a cost negative, zero, or less than a smaller one's.
func TestTokensNeverOverflow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, few := rapid.Int64Range(1, 1<<62), rapid.Int64Range(0, 1<<40)
		c := cost{
			output: rapid.Int64Range(-1, 1<<62).Draw(t, "output"), prompts: n.Draw(t, "prompts"), choices: n.Draw(t, "choices"), bytes: rapid.Int64Range(1, 1<<40).Draw(t, "bytes"),
			shared: few.Draw(t, "shared"), media: few.Draw(t, "media"), heard: rapid.Bool().Draw(t, "heard"),
		}
		b := Bounds{Context: n.Draw(t, "context"), Sound: n.Draw(t, "sound")}
		got := (Grant{cost: c}).Tokens(b)
		if got <= 0 || got > maxTokens {
			t.Fatalf("%d", got)
		}
		prompt, completion := (Grant{cost: c}).Heard(b, n.Draw(t, "seconds"), few.Draw(t, "text"))
		if prompt <= 0 || completion <= 0 || prompt > maxTokens || completion > maxTokens {
			t.Fatalf("%d and %d", prompt, completion)
		}
		more := c
		more.prompts, more.choices, more.media, more.shared = min(c.prompts, 1<<61)*2, min(c.choices, 1<<61)*2, c.media*2, c.shared*2
		if more := (Grant{cost: more}).Tokens(b); more < got {
			t.Fatalf("twice as much costs %d, once %d", more, got)
		}
	})
}

// A grant is made of the facts as they are, and of a form as sound.
func TestCostsAreMadeOfFacts(t *testing.T) {
	r := rows{t, site(t)}
	f := Facts{Model: "llama", CapField: "max_tokens", OutputCap: 10, BodyBytes: 100, Shared: 20, Inputs: 3, Choices: 2}
	if g, v := r.decide("chat", "chat.create", f); v.Refused() || g.Tokens(Bounds{Context: 1000}) != 100+2*20+6*10 {
		t.Errorf("%v, %d tokens", v.Err(), g.Tokens(Bounds{Context: 1000}))
	}
	f.Media = 1
	if g, _ := r.decide("chat", "chat.create", f); g.Tokens(Bounds{Context: 1000}) != 6000 {
		t.Errorf("with a picture: %d tokens", g.Tokens(Bounds{Context: 1000}))
	}
	op, _ := vllm.ByID("audio.translations")
	if c := costOf(op, f); !c.heard || c.shared != 20 {
		t.Errorf("a form: %+v", c)
	}
}

// Who may be sent to either of two servers is bounded by the longer one's context; callers are told the shorter.
func TestTheLongestContextBounds(t *testing.T) {
	p, problems := Build(Rules{Upstreams: []string{"a"}, Models: []Model{{Name: "m", Upstreams: []string{"a"}, MaxModelLen: 1000, LongestLen: 8000}, {Name: "n", Upstreams: []string{"a"}, MaxModelLen: 1000}}})
	if problems != nil {
		t.Fatal(problems)
	}
	if p.Context("m") != 8000 || p.Context("n") != 1000 || p.Context("zz") != 0 {
		t.Errorf("%d %d %d", p.Context("m"), p.Context("n"), p.Context("zz"))
	}
}
