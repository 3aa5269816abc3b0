// Package media tells by its first bytes what a file is.
// It refuses to know what a reader could take for something else: such a file is not known.
package media

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"strings"

	"github.com/vallum/vallum/internal/vllm"
)

// Known reports whether a file of the medium is of a kind that every release of vLLM may be given. What else newer ones
// read, a reader of an older one may fall to.
func Known(m vllm.Medium, file io.ReaderAt) bool {
	head := make([]byte, 16)
	n, _ := file.ReadAt(head, 0) // a short file is short
	head = head[:n]
	if m == vllm.Picture {
		return isPicture(head)
	}
	return isSound(head, file)
}

// isPicture knows what browsers show, and what Pillow finds by these bytes before it asks any other reader.
func isPicture(head []byte) bool {
	for _, begin := range []string{"\x89PNG\r\n\x1a\n", "\xff\xd8\xff", "GIF87a", "GIF89a", "BM", "II*\x00", "MM\x00*"} {
		if bytes.HasPrefix(head, []byte(begin)) {
			return true
		}
	}
	return inside(head, 0, "RIFF") && inside(head, 8, "WEBP") || inside(head, 4, "ftypavif")
}

// isSound knows containers that cannot hold Immersive Audio, whose reader in FFmpeg is what is kept away.
func isSound(head []byte, file io.ReaderAt) bool {
	switch {
	case inside(head, 0, "fLaC"), inside(head, 0, "OggS"), inside(head, 0, "\x1aE\xdf\xa3"), isFrame(head):
		return true
	case inside(head, 0, "RIFF"):
		return inside(head, 8, "WAVE")
	case !inside(head, 0, "ID3") || len(head) < 10:
		return false
	}
	// FFmpeg looks behind the tag, whatever stands there. Its length has seven bits in each byte (ID3v2 §3.1).
	size := int64(10)
	for i, b := range head[6:10] {
		size += int64(b&0x7f) << (7 * (3 - i))
	}
	next := make([]byte, 2)
	n, err := file.ReadAt(next, size)
	return err == nil && isFrame(next[:n])
}

// isFrame is the beginning of MP3 or AAC without a container: eleven bits that are set.
func isFrame(head []byte) bool { return len(head) > 1 && head[0] == 0xff && head[1]&0xe0 == 0xe0 }

func inside(head []byte, at int, what string) bool {
	return len(head) >= at+len(what) && string(head[at:at+len(what)]) == what
}

// Base64 is a file as text. It reads no byte behind a character that is none of base64's: some decoders skip such
// characters and some do not.
type Base64 []byte

// DataURL is the file in a data: URL; nil when it is written in a way that some readers of URLs take for another. They look
// for slashes first, or for the comma.
func DataURL(url []byte) Base64 {
	head, data, ok := bytes.Cut(url, []byte{','})
	if !ok || !bytes.HasSuffix(head, []byte(";base64")) || len(head) > 5 && head[5] == '/' {
		return nil
	}
	return data
}

var errText = errors.New("not base64")

// ReadAt implements io.ReaderAt.
func (t Base64) ReadAt(p []byte, off int64) (int, error) {
	from, to := off/3*4, (off+int64(len(p))+2)/3*4
	to = min(to, int64(len(t)))
	if from >= to {
		return 0, io.EOF
	}
	for _, c := range t[:from] {
		if !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", rune(c)) {
			return 0, errText
		}
	}
	if bytes.ContainsAny(t[from:to], "\r\n") {
		return 0, errText
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(int(to-from)))
	n, err := base64.StdEncoding.Decode(out, t[from:to])
	if skip := int(off % 3); err == nil && n > skip {
		n = copy(p, out[skip:n])
	} else {
		return 0, errText
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
