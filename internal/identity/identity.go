// Package identity says who a caller is once a credential has been checked.
// It refuses to name anybody by default: the zero Principal is Nobody and holds no role.
package identity

import (
	"slices"
	"strings"
)

// Principal is an authenticated caller. It cannot be altered; make one with New.
type Principal struct {
	name   string
	keyID  string
	tenant string
	roles  []string
}

// Nobody is the caller before, or without, authentication.
var Nobody Principal

// New makes a principal of a checked credential: the key's name, its public id, the tenant (the name itself when
// empty: a key's tenant is its own unless given) and the names of its roles. An empty name or key id gives Nobody.
func New(name, keyID, tenant string, roles []string) Principal {
	if name == "" || keyID == "" {
		return Nobody
	}
	if tenant == "" {
		tenant = name
	}
	return Principal{name: name, keyID: keyID, tenant: tenant, roles: slices.Clone(roles)}
}

// IsNobody reports whether no credential stands behind the principal.
func (p Principal) IsNobody() bool { return p.name == "" }

// Name is the key's name, chosen by the operator; "" for Nobody.
func (p Principal) Name() string { return p.name }

// KeyID is the public half of the key: it may be logged, the secret never is.
func (p Principal) KeyID() string { return p.keyID }

// Tenant is whose data this is: prefix caches are kept apart by it.
func (p Principal) Tenant() string { return p.tenant }

// Roles lists the role names that the key holds. The slice must not be changed.
func (p Principal) Roles() []string { return p.roles }

// Has reports whether the principal holds the role.
func (p Principal) Has(role string) bool { return slices.Contains(p.roles, role) }

// NameWords says what IsName takes.
const NameWords = "1 to 64 letters, digits and . _ @ -, the first a letter or digit"

// IsName reports whether keys, tenants, roles and upstreams may be called so: what reads alike in a record, a metric's
// label, a header and a command line.
func IsName(s string) bool {
	for i, c := range []byte(s) {
		plain := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !plain && (i == 0 || !strings.ContainsRune("._@-", rune(c))) {
			return false
		}
	}
	return s != "" && len(s) <= 64
}
