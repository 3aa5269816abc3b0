package fleet

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Skew is how far the clocks of operator and node may differ.
const Skew = 5 * time.Minute

// Errors of Verify and Seen.Admit, for errors.Is.
var (
	ErrSignature = errors.New("the manifest is not signed by the pinned fleet key")
	ErrExpired   = errors.New("the manifest has expired")
	ErrClock     = errors.New("the manifest was signed in the future of this node's clock")
	ErrReplayed  = errors.New("an older manifest than this node has seen")
)

// NewKey makes a fleet key: the private half for the operator's file, the public half that nodes pin. Both are single
// lines in the format of golang.org/x/mod/sumdb/note (Ed25519).
func NewKey(fleet string) (private, public string, err error) {
	if !isName(fleet) {
		return "", "", fmt.Errorf("fleet %q is not a name: 1 to 40 of a-z, 0-9 and -, beginning with a letter", fleet)
	}
	return note.GenerateKey(rand.Reader, fleet)
}

// Sign checks the fleet and returns its signed form, a signed note. now becomes the manifest's time of signing.
func Sign(m *Manifest, private string, now time.Time) ([]byte, error) {
	signer, err := note.NewSigner(strings.TrimSpace(private))
	if err != nil {
		return nil, errors.New("the fleet key is not one that `vallum isolate init` made")
	}
	if signer.Name() != m.Fleet {
		return nil, fmt.Errorf("the key belongs to fleet %q, the manifest to %q", signer.Name(), m.Fleet)
	}
	m.Signed = now
	m.normalise()
	if err := m.Check(); err != nil {
		return nil, err
	}
	if !now.Before(m.Expires) {
		return nil, fmt.Errorf("%w: on %s; write a later `expires`", ErrExpired, m.Expires.Format(time.RFC3339))
	}
	text, err := m.canonical()
	if err != nil {
		return nil, err
	}
	return note.Sign(&note.Note{Text: string(text)}, signer)
}

// Open checks the signature by the pinned key and the manifest's own sense, and returns it. It does not look at the
// clock or at what was seen before: a running overlay goes on when its manifest expires.
func Open(signed []byte, pinned string) (*Manifest, error) {
	verifier, err := note.NewVerifier(strings.TrimSpace(pinned))
	if err != nil {
		return nil, errors.New("the pinned fleet key is not a line as `vallum isolate init` writes to fleet.pub")
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return nil, fmt.Errorf("%w %s: %s", ErrSignature, verifier.Name(), unsigned(signed, err))
	}
	m := &Manifest{}
	d := json.NewDecoder(strings.NewReader(opened.Text))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("reading the manifest: something follows it")
	}
	// One meaning, one spelling: a key that stands twice or in other letters cannot come out the same.
	text, err := m.canonical()
	if err != nil || !bytes.Equal(text, []byte(opened.Text)) {
		return nil, errors.New("the manifest is not in its canonical form; sign it with `vallum isolate sign`")
	}
	if m.Fleet != verifier.Name() {
		return nil, fmt.Errorf("the manifest is of fleet %q, the pinned key of %q", m.Fleet, verifier.Name())
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("the manifest is signed but makes no sense: %w", err)
	}
	return m, nil
}

// unsigned says what is wrong with a file that does not open as a manifest, and what would be right.
func unsigned(signed []byte, err error) string {
	var other *note.UnverifiedNoteError
	var changed *note.InvalidSignatureError
	switch {
	case errors.As(err, &other):
		return "another key signed it; fleet_key or the manifest is of another fleet"
	case errors.As(err, &changed):
		return "it was changed after it was signed; copy the operator's manifest.signed again"
	case len(bytes.TrimSpace(signed)) == 0:
		return "it is empty; copy the operator's manifest.signed again"
	case bytes.Contains(signed, []byte("nodes:")):
		return "it is not signed at all; `vallum isolate sign` makes manifest.signed of the operator's fleet.yaml"
	}
	return "it is cut off, or no manifest; copy the operator's manifest.signed again"
}

// Current refuses a manifest that has expired, or that says that this node's clock is wrong.
func (m *Manifest) Current(now time.Time) error {
	if now.Add(Skew).Before(m.Signed) {
		return fmt.Errorf("%w: signed %s, here it is %s; set the clock", ErrClock, m.Signed.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if now.After(m.Expires.Add(Skew)) {
		return fmt.Errorf("%w: on %s; ask the operator for a new one", ErrExpired, m.Expires.Format(time.RFC3339))
	}
	return nil
}

// Seen is the newest manifest that a node has accepted. The zero value has seen none.
type Seen struct {
	Fleet  string `json:"fleet"`
	Serial uint64 `json:"serial"`
	Digest string `json:"digest"` // of the canonical text, SHA-256 in hex
}

// Admit refuses a manifest that is older than one that was seen, another of the same serial and one of another fleet.
// It returns what is to be remembered.
func (s Seen) Admit(m *Manifest) (Seen, error) {
	text, err := m.canonical()
	if err != nil {
		return s, err
	}
	sum := sha256.Sum256(text)
	next := Seen{Fleet: m.Fleet, Serial: m.Serial, Digest: hex.EncodeToString(sum[:])}
	switch {
	case s == Seen{} || s == next:
		return next, nil
	case s.Fleet != m.Fleet:
		return s, fmt.Errorf("this node belongs to fleet %q, the manifest to %q; `vallum isolate down --forget` first", s.Fleet, m.Fleet)
	case m.Serial < s.Serial:
		return s, fmt.Errorf("%w: serial %d, seen %d", ErrReplayed, m.Serial, s.Serial)
	case m.Serial == s.Serial:
		return s, fmt.Errorf("%w: another manifest with serial %d; every change needs a new serial", ErrReplayed, m.Serial)
	}
	return next, nil
}
