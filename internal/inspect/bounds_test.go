package inspect

import (
	"encoding/json"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vallum/vallum/internal/verdict"
)

// measure is how deep a body is, and how many members all its objects have, as encoding/json reads it.
func measure(t *rapid.T, body string) (deepest, members int) {
	dec := json.NewDecoder(strings.NewReader(body))
	dec.UseNumber()
	type open struct{ object, value bool } // value: what comes next is a member's value
	var stack []open
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return deepest, members
		}
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		if tok == json.Delim('}') || tok == json.Delim(']') {
			stack = stack[:len(stack)-1]
			continue
		}
		if n := len(stack); n > 0 && stack[n-1].object {
			if stack[n-1].value = !stack[n-1].value; stack[n-1].value {
				members++
				continue // a name
			}
		}
		if d, ok := tok.(json.Delim); ok {
			stack = append(stack, open{object: d == '{'})
			deepest = max(deepest, len(stack))
		}
	}
}

// The walk counts where rules apply, the scan where none do: together they count each level and member once, wherever
// it stands.
func TestBoundsCountEverywhereOnce(t *testing.T) {
	table := propertyTable()
	rapid.Check(t, func(t *rapid.T) {
		s := &spelt{T: t}
		s.body()
		body := s.String()
		depth, members := measure(t, body)
		lim := Default()
		lim.MaxDepth, lim.MaxMembers = depth, members
		if _, v := Read(jsonRequest(table, body), lim); v.Refused() {
			t.Fatalf("%s: %d levels and %d members are its own: %s", body, depth, members, v.Message())
		}
		lim.MaxDepth = depth - 1
		if _, v := Read(jsonRequest(table, body), lim); v.Reason() != verdict.BadBody || !strings.Contains(v.Message(), "nested deeper") {
			t.Fatalf("%s: %d levels where %d may be: refused %v, %s", body, depth, depth-1, v.Refused(), v.Message())
		}
		if lim.MaxDepth, lim.MaxMembers = depth, members-1; members == 0 {
			return
		}
		if _, v := Read(jsonRequest(table, body), lim); v.Reason() != verdict.BadBody || !strings.Contains(v.Message(), "members") {
			t.Fatalf("%s: %d members where %d may be: refused %v, %s", body, members, members-1, v.Refused(), v.Message())
		}
	})
}

// A number that is infinite to Python is refused under every kind of field, also one that does not go up.
func TestHugeNumbersAreRefusedEverywhere(t *testing.T) {
	table := propertyTable()
	for _, number := range []string{"1e400", "-1e400", strings.Repeat("9", 400)} {
		for _, body := range []string{
			`{"n":#}`, `{"gone":#}`, `{"zero":#}`, `{"x":#}`, `{"free":#}`, `{"free":[{"a":[#]}]}`, `{"x":[0,#]}`, `{"map":{"k":#}}`, `{"opts":{"a":#}}`,
			`{"opts":{"b":{"c":#}}}`, `{"list":[{"type":"drop","a":#}]}`, `{"list":[#]}`, `{"model":#}`, `{"opts":#}`, `{"free": # }`,
		} {
			_, v := Read(jsonRequest(table, strings.Replace(body, "#", number, 1)), Default())
			if v.Reason() != verdict.BadBody || !strings.Contains(v.Message(), hugeNumber) {
				t.Errorf("%s with %.10s: refused %v, %s", body, number, v.Refused(), v.Message())
			}
		}
	}
}
