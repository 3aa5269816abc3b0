package fleet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// key is a public key that differs by n.
func key(n byte) string { return strings.Repeat(string(rune('A'+n)), 42) + "A=" }

func draft() string {
	return fmt.Sprintf(`format: 1
fleet: lab
serial: 3
expires: 2027-01-31T00:00:00Z
overlay: [10.99.0.0/24, "fd00:99::/64"]
nodes:
  - {name: b, public_key: %q, endpoint: "192.0.2.2:51820", addresses: ["fd00:99::2", 10.99.0.2], roles: [vllm]}
  - {name: a, public_key: %q, endpoint: "192.0.2.1:51820", addresses: [10.99.0.1, "fd00:99::1"], roles: [vllm]}
`, key(2), key(1))
}

func parsed(t *testing.T) *Manifest {
	t.Helper()
	m, err := ParseDraft([]byte(draft()))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// signed signs a draft after an edit, without Sign's own checks when they would refuse it.
func signed(t *testing.T, private string, edit func(*Manifest)) []byte {
	t.Helper()
	m := parsed(t)
	m.Signed = now
	edit(m)
	text, err := m.canonical()
	if err != nil {
		t.Fatal(err)
	}
	return signText(t, private, string(text))
}

func signText(t *testing.T, private, text string) []byte {
	t.Helper()
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	b, err := note.Sign(&note.Note{Text: text}, signer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newKey(t *testing.T) (private, public string) {
	t.Helper()
	private, public, err := NewKey("lab")
	if err != nil {
		t.Fatal(err)
	}
	return private, public
}

func TestASignedManifestIsReadByTheNodeThatPinsItsKey(t *testing.T) {
	private, public := newKey(t)
	b, err := Sign(parsed(t), private, now)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(b, public+"\n")
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := m.ByKey(key(2)); !ok || n.Name != "b" || m.APIPort != DefaultAPIPort || m.Nodes[0].Name != "a" {
		t.Errorf("%+v", m)
	}
	if err := m.Current(now); err != nil {
		t.Error(err)
	}
}

func TestADraftIsReadStrictly(t *testing.T) {
	for name, edit := range map[string][2]string{
		"a misspelt key":    {"expires:", "expire:"},
		"a key twice":       {"serial: 3", "serial: 3\nserial: 4"},
		"a second document": {"nodes:", "nodes: []\n---\nnodes:"},
		"a bad address":     {"10.99.0.1,", "10.99.0.300,"},
	} {
		if _, err := ParseDraft([]byte(strings.Replace(draft(), edit[0], edit[1], 1))); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

// A manifest that came about in a wrong way is refused with a sentence that says why, although the signature is right.
func TestAManifestThatMakesNoSenseIsRefused(t *testing.T) {
	private, public := newKey(t)
	for want, edit := range map[string]func(*Manifest){
		`nodes "a" and "b" have one key`:                         func(m *Manifest) { m.Nodes[1].PublicKey = m.Nodes[0].PublicKey },
		`nodes "a" and "b" overlap in overlay address 10.99.0.1`: func(m *Manifest) { m.Nodes[1].Addresses[0] = m.Nodes[0].Addresses[0] },
		`nodes "a" and "b" have one endpoint`:                    func(m *Manifest) { m.Nodes[1].Endpoint = m.Nodes[0].Endpoint },
		`two nodes are called "a"`:                               func(m *Manifest) { m.Nodes[1].Name = "a" },
		`lies inside the overlay`: func(m *Manifest) {
			m.Overlay[0] = m.Overlay[0].Masked()
			m.Nodes[1].Endpoint = mustEndpoint("10.99.0.9:1")
		},
		`has no address of its own in 10.99.0.0/24`:      func(m *Manifest) { m.Nodes[1].Addresses[0] = m.Nodes[1].Addresses[0].Prev().Prev() },
		`overlay range ::ffff:10.99.0.0/120 is no range`: func(m *Manifest) { m.Overlay[0] = netip.MustParsePrefix("::ffff:10.99.0.0/120") },
		`overlay range 127.0.0.0/8 is no range`:          func(m *Manifest) { m.Overlay[0] = netip.MustParsePrefix("127.0.0.0/8") },
		`overlay range fe80::/10 is no range`:            func(m *Manifest) { m.Overlay[1] = netip.MustParsePrefix("fe80::/10") },
		`overlay range 224.0.0.0/8 is no range`:          func(m *Manifest) { m.Overlay[0] = netip.MustParsePrefix("224.0.0.0/8") },
		`serial is missing`:                              func(m *Manifest) { m.Serial = 0 },
		`expires is missing`:                             func(m *Manifest) { m.Expires = time.Time{} },
		`format 2 is not known`:                          func(m *Manifest) { m.Format = 2 },
		`role "admin" is not one of vllm, gateway`:       func(m *Manifest) { m.Nodes[0].Roles = []string{"admin"} },
		`node "a" has no role`:                           func(m *Manifest) { m.Nodes[0].Roles = nil },
		`public_key is not a WireGuard key`:              func(m *Manifest) { m.Nodes[0].PublicKey = "none" },
		`node "a\nb" has no proper name`:                 func(m *Manifest) { m.Nodes[0].Name = "a\nb" },
		`nodes is empty`:                                 func(m *Manifest) { m.Nodes = nil },
		`of fleet "other", the pinned key of "lab"`:      func(m *Manifest) { m.Fleet = "other" },
	} {
		_, err := Open(signed(t, private, edit), public)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

func TestAForgedManifestIsRefused(t *testing.T) {
	private, public := newKey(t)
	good := signed(t, private, func(*Manifest) {})
	other, _ := newKey(t)
	for name, b := range map[string][]byte{
		"a changed byte":            []byte(strings.Replace(string(good), "192.0.2.2", "192.0.2.9", 1)),
		"another key of that name":  signed(t, other, func(*Manifest) {}),
		"no signature":              []byte(draft()),
		"nothing":                   nil,
		"a cut signature":           good[:len(good)-9],
		"text after the signatures": append(slices.Clone(good), "more\n"...),
	} {
		if _, err := Open(b, public); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Signed, but written by something else: two readers could read it differently.
	for name, edit := range map[string][2]string{
		"a key twice":    {`"serial": 3,`, `"serial": 9, "serial": 3,`},
		"other letters":  {`"serial": 3,`, `"SERIAL": 3,`},
		"an unknown key": {`"serial": 3,`, `"serial": 3, "more": 1,`},
	} {
		text, _, _ := strings.Cut(string(good), "\n\n")
		text = strings.Replace(text, edit[0], edit[1], 1) + "\n"
		if _, err := Open(signText(t, private, text), public); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

func mustEndpoint(s string) (ap netip.AddrPort) {
	if err := ap.UnmarshalText([]byte(s)); err != nil {
		panic(err)
	}
	return ap
}

func TestTimeAndSerialDecide(t *testing.T) {
	m := parsed(t)
	m.Signed = now
	for _, row := range []struct {
		at   time.Time
		want error
	}{
		{now.Add(-Skew), nil},
		{now.Add(-Skew - time.Second), ErrClock},
		{m.Expires.Add(Skew), nil},
		{m.Expires.Add(Skew + time.Second), ErrExpired},
	} {
		if err := m.Current(row.at); !errors.Is(err, row.want) {
			t.Errorf("at %s: %v, want %v", row.at, err, row.want)
		}
	}
	seen, err := Seen{}.Admit(m)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "seen")
	if err := seen.Write(file); err != nil {
		t.Fatal(err)
	}
	if seen, err = ReadSeen(file); err != nil || seen.Serial != 3 {
		t.Fatal(seen, err)
	}
	if _, err := seen.Admit(m); err != nil {
		t.Errorf("the same manifest again: %v", err)
	}
	changed := parsed(t)
	changed.Signed = now.Add(time.Hour)
	if _, err := seen.Admit(changed); !errors.Is(err, ErrReplayed) {
		t.Errorf("another manifest of the same serial: %v", err)
	}
	changed.Serial = 2
	if _, err := seen.Admit(changed); !errors.Is(err, ErrReplayed) {
		t.Errorf("an older one: %v", err)
	}
	changed.Serial = 4
	if next, err := seen.Admit(changed); err != nil || next.Serial != 4 {
		t.Errorf("a newer one: %v", err)
	}
	changed.Fleet = "other"
	if _, err := seen.Admit(changed); err == nil {
		t.Error("another fleet's manifest was accepted")
	}
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSeen(file); err == nil {
		t.Error("an emptied memory reads as \"nothing seen\": a replay would pass")
	}
}

func TestSignRefusesWhatNodesWouldRefuse(t *testing.T) {
	private, _ := newKey(t)
	for want, edit := range map[string]func(*Manifest){
		"expired":             func(m *Manifest) { m.Expires = now },
		"belongs to fleet":    func(m *Manifest) { m.Fleet = "other" },
		"two nodes":           func(m *Manifest) { m.Nodes[0].Name = "b" },
		"serial is missing":   func(m *Manifest) { m.Serial = 0 },
		"overlay needs one":   func(m *Manifest) { m.Overlay = nil },
		"ranges 10.99.0.0/24": func(m *Manifest) { m.Overlay[1] = m.Overlay[0] },
	} {
		m := parsed(t)
		edit(m)
		if _, err := Sign(m, private, now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestKeysStayWithTheirOwner(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.key")
	k, err := CreateNodeKey(file)
	if err != nil {
		t.Fatal(err)
	}
	if shown := fmt.Sprintf("%v %+v %#v %s", k, k, k, k); strings.Contains(shown, k.Public()) || strings.Contains(shown, "0x") {
		t.Errorf("a print shows the key: %s", shown)
	}
	if _, err := CreateNodeKey(file); err == nil {
		t.Error("a key was overwritten")
	}
	again, err := ReadNodeKey(file)
	if err != nil || again.Public() != k.Public() {
		t.Fatal(again, err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadNodeKey(file); err == nil || !strings.Contains(err.Error(), "others can read it") {
		t.Error(err)
	}
}
