package main

import (
	"os"
	"regexp"
	"strings"
	"unicode/utf8"
)

// longText is where the texts of an agent's own prompt are cut. They are its
// authors' words, and nothing of them matters to a gateway but their type.
const longText = 120

// agents are the clients whose bodies carry long prompts of their own.
var agents = map[string]bool{"claude-code": true, "codex": true, "aider": true}

// jsonString is one string literal of a JSON text.
var jsonString = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

// scrub takes out of a recording what is about this machine, and shortens an
// agent's prompts without touching the JSON around them.
func scrub(r recording) recording {
	if host, err := os.Hostname(); err == nil && len(host) > 2 {
		r.Body = strings.ReplaceAll(r.Body, host, "host")
	}
	r.Body = uuid.ReplaceAllString(r.Body, "00000000-0000-4000-8000-000000000000")
	r.Body = hexID.ReplaceAllStringFunc(r.Body, func(s string) string { return strings.Repeat("0", len(s)) })
	r.Body = homePath.ReplaceAllString(r.Body, "/home/user")
	for name, v := range r.Headers {
		r.Headers[name] = uuid.ReplaceAllString(v, "00000000-0000-4000-8000-000000000000")
	}
	if !agents[r.Client] {
		return r
	}
	r.Body = isoDate.ReplaceAllString(r.Body, "2026-01-01")
	r.Body = jsonString.ReplaceAllStringFunc(r.Body, func(s string) string {
		if len(s) <= longText {
			return s
		}
		r.Shortened = true
		cut := longText
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		head := s[:cut]
		// Not in the middle of an escape: back to before its backslash.
		if i := strings.LastIndexByte(head, '\\'); i >= len(head)-6 {
			head = head[:i]
			if strings.HasSuffix(head, `\`) {
				head = strings.TrimRight(head, `\`)
			}
		}
		return head + `…"`
	})
	return r
}

var (
	uuid     = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	isoDate  = regexp.MustCompile(`20[0-9]{2}-[0-9]{2}-[0-9]{2}`)
	hexID    = regexp.MustCompile(`[0-9a-f]{64}`)
	homePath = regexp.MustCompile(`/(?:root|tmp/record-home-[0-9]+|tmp/record-work-[0-9]+)`)
)
