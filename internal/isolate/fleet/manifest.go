// Package fleet is who belongs to one deployment's network: the manifest that its operator signs, and the keys.
// It refuses a manifest that is unsigned, expired, older than one already seen, or that says anything twice.
package fleet

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// Format is the manifest format that this package reads and writes.
const Format = 1

// Roles of a member.
const (
	RoleVLLM    = "vllm"    // runs vLLM processes that talk to each other on any port
	RoleGateway = "gateway" // reaches vLLM's API over the overlay, and nothing else
)

// Defaults of a manifest that does not say otherwise.
const (
	DefaultPort    = 51820 // WireGuard's usual UDP port
	DefaultAPIPort = 8000  // vLLM's --port (vllm/entrypoints/openai/cli_args.py)
)

// Manifest is the fleet as its operator describes it. The zero value is no fleet: Check refuses it.
type Manifest struct {
	Format  int            `yaml:"format" json:"format"`
	Fleet   string         `yaml:"fleet" json:"fleet"`     // name, also the name of the fleet key
	Serial  uint64         `yaml:"serial" json:"serial"`   // from 1; nodes refuse a lower one than they have seen
	Signed  time.Time      `yaml:"signed" json:"signed"`   // when it was signed, UTC, whole seconds; written by Sign
	Expires time.Time      `yaml:"expires" json:"expires"` // from then on `up` refuses it
	Overlay []netip.Prefix `yaml:"overlay" json:"overlay"` // one of IPv4, one of IPv6, or one of each
	APIPort uint16         `yaml:"api_port" json:"api_port"`
	Nodes   []Node         `yaml:"nodes" json:"nodes"`
}

// Node is one member.
type Node struct {
	Name      string         `yaml:"name" json:"name"`
	PublicKey string         `yaml:"public_key" json:"public_key"` // WireGuard's, base64 of 32 bytes
	Endpoint  netip.AddrPort `yaml:"endpoint" json:"endpoint"`     // underlay address and UDP port where it listens
	Addresses []netip.Addr   `yaml:"addresses" json:"addresses"`   // overlay addresses, one of each range
	Roles     []string       `yaml:"roles" json:"roles"`
}

// Has reports whether the node has the role.
func (n Node) Has(role string) bool { return slices.Contains(n.Roles, role) }

// ByKey finds the member that holds the WireGuard key.
func (m *Manifest) ByKey(publicKey string) (Node, bool) {
	for _, n := range m.Nodes {
		if n.PublicKey == publicKey {
			return n, true
		}
	}
	return Node{}, false
}

// ByName finds a member by its name.
func (m *Manifest) ByName(name string) (Node, bool) {
	for _, n := range m.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// ParseDraft reads the operator's fleet.yaml strictly: unknown keys, keys that stand twice and a second document are
// errors, because a misspelt `expires` must not read as "never".
func ParseDraft(b []byte) (*Manifest, error) {
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	m := &Manifest{}
	switch err := d.Decode(m); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("reading the fleet: the file is empty; `vallum isolate init` writes a draft")
	case err != nil:
		return nil, fmt.Errorf("reading the fleet: %s", inOwnWords(err))
	}
	if err := d.Decode(&Manifest{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("reading the fleet: a second document follows; one file holds one fleet")
	}
	m.APIPort = cmp.Or(m.APIPort, DefaultAPIPort)
	m.normalise()
	return m, nil
}

// inOwnWords says what is wrong with a draft without the names of Go's types.
func inOwnWords(err error) string {
	s := strings.TrimPrefix(err.Error(), "yaml: construct errors: ")
	s = unknownKey.ReplaceAllString(s, `there is no key "$1"`)
	s = strings.ReplaceAll(s, "not an ip:port", `not ADDRESS:PORT, such as "192.0.2.1:51820"`)
	s = notTime.ReplaceAllString(s, "$1 is not a time such as 2027-01-31T00:00:00Z")
	return notAddress.ReplaceAllString(s, "$1 is not an address")
}

var (
	unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)
	notTime    = regexp.MustCompile(`parsing time ("[^"]*") as .*`)
	notAddress = regexp.MustCompile(`ParseAddr\(("[^"]*")\): .*`)
)

// normalise gives equal fleets equal bytes.
func (m *Manifest) normalise() {
	m.Signed, m.Expires = m.Signed.UTC().Truncate(time.Second), m.Expires.UTC().Truncate(time.Second)
	slices.SortFunc(m.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	for i := range m.Nodes {
		slices.SortFunc(m.Nodes[i].Addresses, netip.Addr.Compare)
		slices.Sort(m.Nodes[i].Roles)
	}
}

// canonical is the one spelling that is signed: indented JSON in the order of the type, and a newline.
func (m *Manifest) canonical() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

// Check says what is wrong with a fleet, all at once; nil when it can be signed and used.
func (m *Manifest) Check() error {
	var wrong []error
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if m.Format != Format {
		say("format %d is not known; write format: %d", m.Format, Format)
	}
	if !isName(m.Fleet) {
		say("fleet %q is not a name: 1 to 40 of a-z, 0-9 and -, beginning with a letter", m.Fleet)
	}
	if m.Serial == 0 {
		say("serial is missing; begin with 1 and count up with every change")
	}
	if m.Expires.Unix() <= 0 {
		say("expires is missing; write a time such as 2027-01-31T00:00:00Z")
	}
	if m.APIPort == 0 {
		say("api_port is missing")
	}
	m.checkOverlay(say)
	if len(m.Nodes) == 0 {
		say("nodes is empty; a fleet without members isolates nothing")
	}
	for i, n := range m.Nodes {
		m.checkNode(n, say)
		for _, other := range m.Nodes[:i] {
			checkPair(n, other, say)
		}
	}
	return errors.Join(wrong...)
}

func (m *Manifest) checkOverlay(say func(string, ...any)) {
	if len(m.Overlay) == 0 || len(m.Overlay) > 2 {
		say("overlay needs one IPv4 range, one IPv6 range or one of each, such as 10.99.0.0/24")
	}
	for i, p := range m.Overlay {
		switch {
		case !p.IsValid() || p.IsSingleIP() || p.Bits() < 8:
			say("overlay range %s is not a network of 8 bits or longer with room for nodes; write one such as 10.99.0.0/24", p)
		case p != p.Masked():
			say("overlay range %s names an address and not a network; did you mean %s?", p, p.Masked())
		}
		if a := p.Addr(); a.Is4In6() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
			// Rules for one family would not see the other's packets, and the kernel treats the rest as no network's.
			say("overlay range %s is no range for nodes; choose one such as 10.99.0.0/24 or fd00:99::/64", p)
		}
		for _, other := range m.Overlay[:i] {
			if p.Addr().Is4() == other.Addr().Is4() {
				say("overlay ranges %s and %s are of one family; one of each is enough", other, p)
			}
		}
	}
}

func (m *Manifest) checkNode(n Node, say func(string, ...any)) {
	if !isName(n.Name) {
		say("node %q has no proper name: 1 to 40 of a-z, 0-9 and -, beginning with a letter", n.Name)
	}
	if k, err := base64.StdEncoding.Strict().DecodeString(n.PublicKey); err != nil || len(k) != 32 || bytes.Equal(k, make([]byte, 32)) {
		say("node %q: public_key is not a WireGuard key; `vallum isolate keygen` on the node prints it", n.Name)
	}
	if a := n.Endpoint.Addr(); !n.Endpoint.IsValid() || n.Endpoint.Port() == 0 || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Is4In6() || a.Zone() != "" {
		say("node %q: endpoint %s is not the ADDRESS:PORT where other nodes reach it", n.Name, n.Endpoint)
	}
	if len(n.Roles) == 0 {
		say("node %q has no role; write roles: [vllm] or [gateway]", n.Name)
	}
	for i, r := range n.Roles {
		if r != RoleVLLM && r != RoleGateway || slices.Contains(n.Roles[:i], r) {
			say("node %q: role %q is not one of vllm, gateway, each once", n.Name, r)
		}
	}
	if len(n.Addresses) != len(m.Overlay) {
		say("node %q has %d overlay addresses; it needs one of each overlay range", n.Name, len(n.Addresses))
	}
	for _, p := range m.Overlay {
		if p != p.Masked() || p.IsSingleIP() {
			continue // said of the range
		}
		if in := slices.IndexFunc(n.Addresses, p.Contains); in < 0 || n.Addresses[in] == p.Addr() {
			say("node %q has no address of its own in %s", n.Name, p)
		}
		if p.Contains(n.Endpoint.Addr()) {
			say("node %q: endpoint %s lies inside the overlay %s: the tunnel would have to go through itself", n.Name, n.Endpoint, p)
		}
	}
}

func checkPair(a, b Node, say func(string, ...any)) {
	if a.Name == b.Name {
		say("two nodes are called %q", a.Name)
	}
	if a.PublicKey == b.PublicKey {
		say("nodes %q and %q have one key; each makes its own with `vallum isolate keygen`", b.Name, a.Name)
	}
	if a.Endpoint == b.Endpoint {
		say("nodes %q and %q have one endpoint %s", b.Name, a.Name, a.Endpoint)
	}
	for _, addr := range a.Addresses {
		if slices.Contains(b.Addresses, addr) {
			say("nodes %q and %q overlap in overlay address %s", b.Name, a.Name, addr)
		}
	}
}

// isName keeps names harmless in files, hosts lines, rules and notes.
func isName(s string) bool {
	if s == "" || len(s) > 40 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
