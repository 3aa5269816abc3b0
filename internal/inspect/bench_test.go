package inspect

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/vllm"
)

// benchBodies are a short chat, a long text, an agent's request with tools, and token ids: what costs time differs.
func benchBodies() map[string][2]string {
	var turns, tools, ids strings.Builder
	line := "The quick brown fox says \\\"hi\\\" to C:\\\\dir and goes on for a while.\\n"
	for i := range 200 {
		if i > 0 {
			turns.WriteString(",")
		}
		fmt.Fprintf(&turns, `{"role":"user","content":[{"type":"text","text":"%s"}]}`, strings.Repeat(line, 6))
	}
	for i := range 120 {
		if i > 0 {
			tools.WriteString(",")
		}
		fmt.Fprintf(&tools, `{"type":"function","function":{"name":"f%d","description":"%s","parameters":{"type":"object","properties":{"a":{"type":"string","description":"what"},"b":{"type":"integer","minimum":0,"maximum":10},"c":{"anyOf":[{"type":"null"},{"type":"array","items":{"type":"number"}}]}},"required":["a","b"],"additionalProperties":false}}}`, i, strings.Repeat("does things ", 40))
	}
	for i := range 17000 {
		if i > 0 {
			ids.WriteString(",")
		}
		fmt.Fprintf(&ids, "%d", 10000+i)
	}
	return map[string][2]string{
		"chat/1KB":        {"chat.create", `{"model":"m","stream":true,"max_tokens":100,"temperature":0.7,"messages":[{"role":"system","content":"` + strings.Repeat("be nice ", 50) + `"},{"role":"user","content":"` + strings.Repeat("hello ", 70) + `"}]}`},
		"chat/text100KB":  {"chat.create", `{"model":"m","messages":[` + turns.String() + `]}`},
		"chat/tools100KB": {"chat.create", `{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[` + tools.String() + `]}`},
		"ids100KB":        {"completions.create", `{"model":"m","prompt":[` + ids.String() + `]}`},
	}
}

func BenchmarkReadAndRewrite(b *testing.B) {
	edits := []policy.Edit{{Name: "model", Pointer: "/model", Value: `"llama"`}, {Name: "cache_salt", Pointer: "/cache_salt", Value: `"0123456789abcdef"`}}
	for name, row := range benchBodies() {
		table, _ := vllm.FieldsOf(row[0])
		b.Run("decoder/"+name, func(b *testing.B) { // what the JSON alone costs, as one value
			b.SetBytes(int64(len(row[1])))
			for b.Loop() {
				if _, err := jsontext.NewDecoder(bytes.NewBufferString(row[1])).ReadValue(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(row[1])))
			for b.Loop() {
				d := mustRead(b, jsonRequest(table, row[1]))
				up := mustRewrite(b, d, edits...)
				_ = d.Close()
				up.Free()
			}
		})
	}
}
