package audit

import (
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vallum/vallum/internal/audit/chain"
	"golang.org/x/mod/sumdb/note"
)

// signingKey is the log's own key pair.
type signingKey struct {
	signer   note.Signer
	verifier note.Verifier
	vkey     string // the public half, as log.pub has it
}

// loadKey reads the signing key, or makes one when mayCreate. The key's name is the origin.
func loadKey(path, origin string, mayCreate bool) (signingKey, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if !mayCreate {
			return signingKey{}, fmt.Errorf("the log has lines but its signing key %q is gone; put the key back, or move the directory aside and begin a new log", path)
		}
		return createKey(path, origin)
	}
	if err != nil {
		return signingKey{}, fmt.Errorf("signing key: %w", err)
	}
	if err := private(path, info); err != nil {
		return signingKey{}, fmt.Errorf("signing key: %w", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return signingKey{}, fmt.Errorf("signing key: %w", err)
	}
	k, err := parseKey(strings.TrimSpace(string(b)))
	if err != nil { // the error must not carry the content
		return signingKey{}, fmt.Errorf("signing key %q is not a note signing key (PRIVATE+KEY+name+hash+key, Ed25519)", path)
	}
	if origin != "" && k.signer.Name() != origin {
		return signingKey{}, fmt.Errorf("signing key %q was made for origin %q, not %q; keep one origin for a log's whole life", path, k.signer.Name(), origin)
	}
	return k, nil
}

func createKey(path, origin string) (signingKey, error) {
	origin = cmp.Or(origin, DefaultOrigin)
	skey, _, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return signingKey{}, fmt.Errorf("making a signing key: %w", err)
	}
	k, err := parseKey(skey)
	if err != nil {
		return signingKey{}, fmt.Errorf("origin %q: a name without spaces and \"+\" is needed", origin)
	}
	if err := replaceFile(path, []byte(skey+"\n")); err != nil {
		return signingKey{}, fmt.Errorf("writing the signing key: %w", err)
	}
	return k, nil
}

// publish writes log.pub beside the log, or refuses one that belongs to another key.
func (k signingKey) publish(dir string) error {
	path := filepath.Join(dir, chain.PublicName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return replaceFile(path, []byte(k.vkey+"\n"))
	}
	if err != nil {
		return fmt.Errorf("verifier key: %w", err)
	}
	if strings.TrimSpace(string(b)) != k.vkey {
		return fmt.Errorf("%q does not belong to the signing key; the log would not verify; put back the key that made the log", path)
	}
	return nil
}

func parseKey(skey string) (signingKey, error) {
	signer, err := note.NewSigner(skey)
	if err != nil {
		return signingKey{}, err
	}
	parts := strings.SplitN(skey, "+", 5)
	seed, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return signingKey{}, errors.New("not an Ed25519 seed")
	}
	public, ok := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey)
	if !ok {
		return signingKey{}, errors.New("not an Ed25519 seed")
	}
	vkey, err := note.NewEd25519VerifierKey(signer.Name(), public)
	if err != nil {
		return signingKey{}, err
	}
	verifier, err := note.NewVerifier(vkey)
	return signingKey{signer, verifier, vkey}, err
}

// notary signs checkpoints and appends them to two files. Its lock is taken after the log's own, never before.
type notary struct {
	mu     sync.Mutex
	key    signingKey
	open   noteFile // of the segment being written: one for every second with traffic
	sealed noteFile // one for every sealed segment
	signed uint64   // size of the last checkpoint
	sinks  chan []byte
}

type noteFile struct {
	file file
	size int64
}

// sign states that the log has size lines ending in head. A stale size is passed over: a rotation may
// have signed more in the meantime. The lines must be as durable as the log's Sync promises.
func (n *notary) sign(size uint64, head chain.Hash, now time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if size <= n.signed {
		return nil
	}
	return n.append(&n.open, size, head, now)
}

// seal signs the end of a segment for good and forgets the finer checkpoints inside it: the chain
// and this one signature cover every line of them.
func (n *notary) seal(size uint64, head chain.Hash, now time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.append(&n.sealed, size, head, now); err != nil {
		return err
	}
	if err := n.sealed.file.Sync(); err != nil {
		return fmt.Errorf("writing a checkpoint: %w", err)
	}
	if err := n.open.file.Truncate(0); err != nil {
		return fmt.Errorf("clearing %s: %w", chain.OpenName, err)
	}
	n.open.size = 0
	return nil
}

func (n *notary) append(f *noteFile, size uint64, head chain.Hash, now time.Time) error {
	c := chain.Checkpoint{Origin: n.key.signer.Name(), Size: size, Time: now, Head: head}
	msg, err := note.Sign(&note.Note{Text: c.Text()}, n.key.signer)
	if err != nil {
		return fmt.Errorf("signing a checkpoint: %w", err)
	}
	if err := f.append(append(msg, '\n')); err != nil {
		return fmt.Errorf("writing a checkpoint: %w", err)
	}
	n.signed = max(n.signed, size)
	select {
	case n.sinks <- msg:
	default: // a sink that hangs must not stop the log; the next checkpoint covers this one too
	}
	return nil
}

// append writes b whole or leaves the file as it was.
func (f *noteFile) append(b []byte) error {
	if _, err := f.file.WriteAt(b, f.size); err != nil {
		return errors.Join(err, f.file.Truncate(f.size))
	}
	f.size += int64(len(b))
	return nil
}

func (n *notary) lastSigned() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.signed
}
