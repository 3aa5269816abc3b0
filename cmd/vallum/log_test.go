package main

import "testing"

func TestLastNoteIsFoundInCapturedOutput(t *testing.T) {
	const note = "vallum-audit\n7\naGFzaA==\n2026-11-23T00:00:00Z\n\n— vallum-audit abc\n"
	for what, text := range map[string]string{
		"alone":         note,
		"captured":      "listening on http://127.0.0.1:1\n\nvallum-audit\n3\nx\ny\n\n— vallum-audit old\n\n\n" + note + "\n",
		"without a gap": "listening on http://127.0.0.1:1\n" + note,
	} {
		if got := string(lastNote([]byte(text))); got != note {
			t.Errorf("%s: %q", what, got)
		}
	}
	if got := string(lastNote([]byte("nothing\n"))); got != "nothing\n" {
		t.Errorf("%q", got)
	}
}
