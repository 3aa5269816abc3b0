package media

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/vllm"
)

// id3 is a tag of n bytes and what follows it.
func id3(n int, rest string) string {
	return "ID3\x04\x00\x00" + string([]byte{byte(n >> 21 & 127), byte(n >> 14 & 127), byte(n >> 7 & 127), byte(n & 127)}) + strings.Repeat("t", n) + rest
}

func TestKnownByTheFirstBytes(t *testing.T) {
	for name, row := range map[string]struct {
		medium vllm.Medium
		file   string
		known  bool
	}{
		"PNG":                  {vllm.Picture, "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", true},
		"JPEG":                 {vllm.Picture, "\xff\xd8\xff\xe0", true},
		"GIF":                  {vllm.Picture, "GIF89a", true},
		"WebP":                 {vllm.Picture, "RIFF\x24\x00\x00\x00WEBPVP8 ", true},
		"TIFF":                 {vllm.Picture, "II*\x00\x08", true},
		"AVIF":                 {vllm.Picture, "\x00\x00\x00\x1cftypavif", true},
		"PostScript":           {vllm.Picture, "%!PS-Adobe-3.0 EPSF-3.0\n", false},
		"PostScript in binary": {vllm.Picture, "\xc5\xd0\xd3\xc6\x20\x00", false},
		"a film as a picture":  {vllm.Picture, "\x00\x00\x00\x1cftypisom", false},
		"no bytes":             {vllm.Picture, "", false},
		"sound as a picture":   {vllm.Picture, "RIFF\x24\x00\x00\x00WAVEfmt ", false},

		"WAV":                         {vllm.Sound, "RIFF\x24\x00\x00\x00WAVEfmt ", true},
		"RIFF of another kind":        {vllm.Sound, "RIFF\x24\x00\x00\x00AVI LIST", false},
		"FLAC":                        {vllm.Sound, "fLaC\x00", true},
		"Ogg":                         {vllm.Sound, "OggS\x00", true},
		"WebM":                        {vllm.Sound, "\x1aE\xdf\xa3\x9f", true},
		"MP3":                         {vllm.Sound, "\xff\xfb\x90\x44", true},
		"AAC":                         {vllm.Sound, "\xff\xf1\x50\x80", true},
		"MP3 behind a tag":            {vllm.Sound, id3(1000, "\xff\xfb\x90\x44"), true},
		"something else behind a tag": {vllm.Sound, id3(1000, "\x00\x00\x00\x1cftypiso6"), false},
		"a tag that never ends":       {vllm.Sound, id3(1000, ""), false},
		"Immersive Audio":             {vllm.Sound, "\xf8\x06iamf\x00\x00", false},
		"MP4":                         {vllm.Sound, "\x00\x00\x00\x1cftypM4A ", false},
		"no sound":                    {vllm.Sound, "", false},
	} {
		if Known(row.medium, bytes.NewReader([]byte(row.file))) != row.known {
			t.Errorf("%s: known is not %t", name, row.known)
		}
		text := base64.StdEncoding.EncodeToString([]byte(row.file))
		if Known(row.medium, Base64(text)) != row.known || Known(row.medium, DataURL([]byte("data:a/b;c=d;base64,"+text))) != row.known {
			t.Errorf("%s as text: known is not %t", name, row.known)
		}
	}
}

func TestTextThatReadersTakeForSomethingElseIsNotKnown(t *testing.T) {
	png := base64.StdEncoding.EncodeToString([]byte("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00"))
	tag := base64.StdEncoding.EncodeToString([]byte(id3(999, "\xff\xfb\x90\x44")))
	for name, url := range map[string]string{
		"a URL with a host":     "data://a," + png + "/b;base64,AAAA",
		"a path":                "data:/a;base64," + png,
		"no base64":             "data:image/png," + png,
		"no comma":              "data:image/png;base64",
		"a line end in front":   "data:image/png;base64,\n" + png,
		"a character before it": "data:image/png;base64,!" + png,
		"spaces inside":         "data:image/png;base64," + png[:4] + "    " + png[4:],
	} {
		if Known(vllm.Picture, DataURL([]byte(url))) {
			t.Errorf("%s is known", name)
		}
	}
	if !Known(vllm.Sound, Base64(tag)) || Known(vllm.Sound, Base64(tag[:40]+"!!!!"+tag[44:])) {
		t.Error("a character that is none of base64's, in a tag")
	}
}
