// Package parts says which real parts the proofs run against, at which
// versions, and where the cache keeps each of them. It refuses to guess: a part
// without its completion marker does not exist for anyone who asks here.
package parts

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// marker is the last file an installation writes. A folder without it is a
// half-done install, whatever else it contains.
const marker = ".complete"

// The versions that the proofs speak about. Change one, and the part is
// installed anew beside the old one.
const (
	VLLMVersion       = "0.32.0"
	OldestVLLMVersion = "0.28.0" // of the six releases for which behaviour is promised
	TorchVersion      = "2.13.0" // both releases ask for it
	UVVersion         = "0.13.9"
	OpenAIPython      = "3.54.0"
	AnthropicPython   = "2.12.0"
	OpenAINode        = "7.57.0"
	AnthropicNode     = "1.12.0"
	OpenAIGo          = "3.96.0"
	AnthropicGo       = "1.84.0"
	KubeVersion       = "1.37.2"
	EnvoyVersion      = "1.40.0"
	recipeDigestBytes = 4
)

// Part is one thing to install: its name and version, and the digest of the
// recipe that makes it, so that a changed recipe is a new part.
type Part struct {
	Name    string
	Version string
	Recipe  string // 8 hexadecimal digits, or "" where the version says it all
}

// New names a part. The recipe is whatever text decides what the install makes
// beyond name and version: a script, a lock file, a list of requirements.
func New(name, version string, recipe ...[]byte) Part {
	p := Part{Name: name, Version: version}
	if len(recipe) == 0 {
		return p
	}
	h := sha256.New()
	for _, r := range recipe {
		fmt.Fprintf(h, "%d:", len(r))
		h.Write(r)
	}
	p.Recipe = hex.EncodeToString(h.Sum(nil)[:recipeDigestBytes])
	return p
}

// Key is the name of the part's folder in the cache.
func (p Part) Key() string {
	key := p.Name + "-" + p.Version
	if p.Recipe != "" {
		key += "-" + p.Recipe
	}
	return key
}

// Root is the cache folder: $VALLUM_CACHE, or vallum in the user's cache
// folder (XDG Base Directory Specification). It is always outside the tree.
func Root() (string, error) {
	if dir := os.Getenv("VALLUM_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache folder (set VALLUM_CACHE): %w", err)
	}
	return filepath.Join(dir, "vallum"), nil
}

// Path is the folder of p in the cache, whether installed or not.
func Path(p Part) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, p.Key()), nil
}

// ErrMissing says that a part is not installed, or was left half done.
var ErrMissing = errors.New("not installed: run `go -C conformance run ./install`")

// Dir is the folder of a part that is installed completely, and ErrMissing
// otherwise.
func Dir(p Part) (string, error) {
	dir, err := Path(p)
	if err != nil {
		return "", err
	}
	if !Complete(dir) {
		return "", fmt.Errorf("%s %s: %w", p.Name, p.Version, ErrMissing)
	}
	return dir, nil
}

// Complete tells whether dir holds a finished install.
func Complete(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, marker))
	return err == nil
}

// MarkComplete writes the marker. The install calls it last, after everything
// else is on disk.
func MarkComplete(dir, note string) error {
	return os.WriteFile(filepath.Join(dir, marker), []byte(note+"\n"), 0o644)
}
