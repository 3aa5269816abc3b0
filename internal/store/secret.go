package store

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
)

// A key is vlm_<id>_<secret>: the id in small letters and digits, 62 bits, public; the secret in letters and digits,
// 43 of which hold 256 bits. No separator but the two: a double click selects the key whole. authn holds the same shape.
const (
	keyPrefix    = "vlm_"
	idAlphabet   = "0123456789abcdefghijklmnopqrstuvwxyz"
	idLength     = 12
	alphabet     = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	secretBytes  = 32
	secretLength = 43
)

// What a key from elsewhere must have to be taken. Shorter ones can be guessed over the network by somebody patient.
const (
	minImported         = 20
	maxImported         = 512
	minImportedDistinct = 8
)

// newID makes a key's public id.
func newID() (string, error) { return random(idLength, idAlphabet) }

// random draws characters from the alphabet, all with the same probability.
func random(length int, from string) (string, error) {
	out := make([]byte, length)
	for i := range out {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(from))))
		if err != nil {
			return "", fmt.Errorf("drawing a key: %w", err)
		}
		out[i] = from[n.Int64()]
	}
	return string(out), nil
}

// newSecret is 256 random bits in base 62, with leading zeros, so that every key has one length.
func newSecret() (string, error) {
	raw := make([]byte, secretBytes)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("drawing a key: %w", err)
	}
	n, base, digit := new(big.Int).SetBytes(raw), big.NewInt(int64(len(alphabet))), new(big.Int)
	out := make([]byte, secretLength)
	for i := len(out) - 1; i >= 0; i-- {
		n.DivMod(n, base, digit)
		out[i] = alphabet[digit.Int64()]
	}
	return string(out), nil
}

// hashOf is what is kept of a key: SHA-256 of the whole of it. Nothing slower is needed for 256 random bits, and a slow
// hash on each request would be a lever for denial of service.
func hashOf(key string) [sha256.Size]byte { return sha256.Sum256([]byte(key)) }

// checkImported refuses values that would be weak or unreachable keys. The error does not repeat the value.
func checkImported(value string) error {
	if len(value) < minImported || len(value) > maxImported {
		return fmt.Errorf("the key has %d characters, want %d to %d: make a new one with `vallum keys create`", len(value), minImported, maxImported)
	}
	if value[:len(keyPrefix)] == keyPrefix {
		return errors.New("the key begins with vlm_: keys of Vallum's own shape are made with `vallum keys create`, not imported")
	}
	seen := make(map[byte]bool)
	for i := range len(value) {
		if value[i] <= ' ' || value[i] >= 0x7f {
			return fmt.Errorf("the key's byte %d is no visible ASCII character: no header can carry it", i+1)
		}
		seen[value[i]] = true
	}
	if len(seen) < minImportedDistinct {
		return fmt.Errorf("the key has only %d different characters, want %d: it can be guessed", len(seen), minImportedDistinct)
	}
	return nil
}
