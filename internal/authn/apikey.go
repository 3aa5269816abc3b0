package authn

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/vallum/vallum/internal/ascii"
	"github.com/vallum/vallum/internal/verdict"
)

// maxCredential is the longest credential in bytes: ours have 60, provider keys up to about 200.
const maxCredential = 512

// KeyPrefix begins a key of ours, which is vlm_<id>_<secret>. The alphabets are held by store, which makes the keys.
const KeyPrefix = "vlm_"

const (
	idLength     = 12
	secretLength = 43
	keyLength    = len(KeyPrefix) + idLength + 1 + secretLength
)

// The headers that a key may stand in, in canonical form. OpenAI's clients send the first, Anthropic's the first or the
// second, Azure's the third; some send two of them, one mostly empty.
var credentialHeaders = [...]string{"Authorization", "X-Api-Key", "Api-Key"}

// credential is the one key that the headers present, and whether they present anything. Refused when there is none,
// when two differ, when a header stands twice (which one counts differs from server to server: vLLM takes the first,
// others the last), and when it is nothing that any key can be; then it is "".
func credential(h http.Header) (key string, sent bool, v verdict.Verdict) {
	for _, name := range credentialHeaders {
		values := h[name]
		if len(values) > 1 {
			return "", true, verdict.Refuse(verdict.NoCredential, fmt.Errorf("%d %s headers", len(values), name)).
				At(name).Saying("The %s header stands twice.", name)
		}
		if len(values) == 0 || values[0] == "" {
			continue
		}
		value := values[0]
		if name == "Authorization" {
			var bearer bool
			if value, bearer = bearerToken(value); !bearer {
				return "", true, malformed(name, "the scheme is not Bearer")
			}
		}
		switch {
		case value == "":
			continue
		case len(value) > maxCredential:
			return "", true, malformed(name, "longer than a key can be")
		case !ascii.Visible(value): // RFC 6750 §2.1 allows less, providers' keys are all within
			return "", true, malformed(name, "a key has visible ASCII characters only, and no spaces")
		case key != "" && key != value:
			return "", true, verdict.Refuse(verdict.NoCredential, fmt.Errorf("%s differs from the header before it", name)).
				At(name).Saying("The request has two different keys.")
		}
		key = value
	}
	if key == "" {
		return "", false, verdict.Refuse(verdict.NoCredential, errors.New("no key was sent"))
	}
	return key, true, verdict.Allow()
}

// malformed is the refusal of what no key can be: to the caller the same as for an unknown key.
func malformed(header, what string) verdict.Verdict {
	return verdict.Refuse(verdict.NoCredential, fmt.Errorf("malformed %s: %s", header, what))
}

// bearerToken takes the token out of an Authorization header: the scheme in any case, one space, the rest as it is,
// as vLLM 0.32.0 does (server_utils.py, AuthenticationMiddleware). A scheme alone is an empty token: clients that were given no key send
// "Bearer ", and net/http trims it.
func bearerToken(value string) (string, bool) {
	scheme, token, _ := strings.Cut(value, " ")
	return token, strings.EqualFold(scheme, "bearer")
}

// idOf is the public id in a key of our shape, or "".
func idOf(presented string) string {
	if len(presented) != keyLength || presented[:len(KeyPrefix)] != KeyPrefix {
		return ""
	}
	id, rest := presented[len(KeyPrefix):len(KeyPrefix)+idLength], presented[len(KeyPrefix)+idLength:]
	if rest[0] != '_' {
		return ""
	}
	for i := range len(id) {
		if c := id[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return ""
		}
	}
	for i := 1; i < len(rest); i++ {
		if c := rest[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return ""
		}
	}
	return id
}

// hashPrefix finds imported keys. How long finding takes depends on a hash, of which a caller cannot choose a prefix
// near another's without knowing that; what decides is the whole hash, compared in constant time.
type hashPrefix [16]byte

func prefixOf(sum *[sha256.Size]byte) hashPrefix { return hashPrefix(sum[:16]) }
