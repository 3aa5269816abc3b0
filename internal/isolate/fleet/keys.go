package fleet

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// NodeKey is a node's WireGuard key. It is read from a file and handed to the kernel or the tunnel process; it is in
// no argument, no environment and no print.
type NodeKey struct{ private *ecdh.PrivateKey }

// NewNodeKey makes a key.
func NewNodeKey() (NodeKey, error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	return NodeKey{k}, err
}

// Public is what stands in the manifest, base64.
func (k NodeKey) Public() string {
	return base64.StdEncoding.EncodeToString(k.private.PublicKey().Bytes())
}

// Bytes are the 32 bytes of the private half.
func (k NodeKey) Bytes() []byte { return k.private.Bytes() }

// String keeps the key out of prints and logs.
func (k NodeKey) String() string { return "(a WireGuard key)" }

// GoString is String, for %#v.
func (k NodeKey) GoString() string { return k.String() }

// CreateNodeKey makes a key and writes it to a new file with mode 0600; one that stands there is never overwritten.
func CreateNodeKey(file string) (NodeKey, error) {
	k, err := NewNodeKey()
	if err != nil {
		return NodeKey{}, err
	}
	return k, WriteSecret(file, base64.StdEncoding.EncodeToString(k.Bytes()))
}

// ReadNodeKey reads a key file; one that others may read is refused.
func ReadNodeKey(file string) (NodeKey, error) {
	b, err := ReadSecret(file)
	if errors.Is(err, fs.ErrNotExist) {
		return NodeKey{}, fmt.Errorf("%w; `vallum isolate keygen` makes it", err)
	}
	if err != nil {
		return NodeKey{}, err
	}
	raw, err := base64.StdEncoding.DecodeString(b)
	if err != nil {
		return NodeKey{}, fmt.Errorf("node key %q is not base64", file)
	}
	k, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return NodeKey{}, fmt.Errorf("node key %q has %d bytes; a WireGuard key has 32", file, len(raw))
	}
	return NodeKey{k}, nil
}

// ParsePreshared reads a key that two nodes share: 32 bytes in base64, not all zero, for that is WireGuard's "none".
func ParsePreshared(line string) ([32]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(line)
	if err != nil || len(raw) != 32 || [32]byte(raw) == [32]byte{} {
		return [32]byte{}, errors.New("a pre-shared key is base64 of 32 bytes, such as of `openssl rand -base64 32`")
	}
	return [32]byte(raw), nil
}

// WriteSecret writes a line to a new file with mode 0600.
func WriteSecret(file, line string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%q stands already; a key is never overwritten", file)
	}
	if err != nil {
		return fmt.Errorf("writing a key: %w", err)
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Sync(), f.Close())
}

// ReadSecret reads the line of a file that only its owner may read.
func ReadSecret(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", fmt.Errorf("reading a key: %w", err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("key file %q has mode %04o: others can read it; chmod 600, or make a new key if they did", file, info.Mode().Perm())
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading a key: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// ReadSeen reads what the node has accepted before; a file that is not there is a node that has seen nothing.
func ReadSeen(file string) (Seen, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return Seen{}, nil
	}
	if err != nil {
		return Seen{}, fmt.Errorf("reading the newest manifest seen: %w", err)
	}
	var s Seen
	if err := json.Unmarshal(b, &s); err != nil || s.Serial == 0 {
		return Seen{}, fmt.Errorf("%q does not say which manifest was seen last; restore it, or delete it if you know that no older manifest is about", file)
	}
	return s, nil
}

// Write remembers, at once and for good: power loss leaves the old file or the new one.
func (s Seen) Write(file string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return WriteWhole(file, append(b, '\n'))
}

// WriteWhole replaces a file with mode 0600 in one step.
func WriteWhole(file string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(file))
}

// syncDir makes a rename last. Windows has no such thing.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
