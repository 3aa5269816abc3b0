package keyfile

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vallum/vallum/internal/authn"
)

const (
	appKey = "vlm_app0app0app0_CANARYaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	oldKey = "sk-CANARY-imported-from-somewhere"
)

func hexOf(key string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(key))) }

func TestKeyFile(t *testing.T) {
	text := "# keys of the site\r\n\r\n" +
		"app\tinference,monitor  sha256:" + hexOf(oldKey) + " tenant=acme expires=2027-01-31 # until the audit\r\n" +
		"  ci inference " + strings.ToUpper(hexOf(appKey)) + " expires=2027-01-31T12:00:00+01:00"
	keys, problems := Parse("keys", []byte(text))
	if len(problems) != 0 || len(keys) != 2 {
		t.Fatalf("%d keys, %v", len(keys), problems)
	}
	app, ci := keys[0], keys[1]
	if app.Name != "app" || app.ID != "file:app" || app.Tenant != "acme" || !slices.Equal(app.Roles, []string{"inference", "monitor"}) ||
		!app.Expires.Equal(time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC)) || !app.Imported {
		t.Errorf("app: %+v", app)
	}
	if ci.Name != "ci" || ci.Tenant != "" || !ci.Expires.Equal(time.Date(2027, 1, 31, 11, 0, 0, 0, time.UTC)) {
		t.Errorf("ci: %+v", ci)
	}
	a := authn.New(authn.Options{})
	a.SetKeys(authn.NewKeys(keys))
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for key, want := range map[string]string{oldKey: "app", appKey: "ci"} {
		if who, v := a.Authenticate(http.Header{"X-Api-Key": {key}}, netip.MustParseAddr("192.0.2.7"), noon); v.Refused() || who.Name() != want {
			t.Errorf("%q: %v", want, v.Err())
		}
	}
}

func TestKeyFileProblemsSayWhereAndNeverRepeatAKey(t *testing.T) {
	good := "app inference " + hexOf(oldKey)
	for text, want := range map[string]string{
		"app":                                      "keys:1:1: 1 of three fields",
		"\napp inference":                          "keys:2:1: 2 of three fields",
		"app inference " + appKey:                  "keys:1:15: not a SHA-256",
		"app inference sk-CANARY":                  "keys:1:15: not a SHA-256",
		appKey + " inference " + hexOf(oldKey):     "keys:1:1: a key is written out",
		"app " + oldKey + ", " + hexOf(oldKey):     "keys:1:5: a role is not a name",
		"app inference " + hexOf(""):               "keys:1:15: this is the hash of nothing",
		"app inference " + hexOf("\n"):             "keys:1:15: this is the hash of nothing",
		"app inference " + strings.Repeat("0", 64): "keys:1:15: this is the hash of nothing",
		good + "00":                                "keys:1:15: not a SHA-256",
		good + "\n" + good:                         "keys:2:1: line 1 has this name",
		good + "\nb" + good[3:]:                    "keys:2:13: line 1 has this key",
		"app a,a " + hexOf(oldKey):                 "keys:1:5: a role stands twice",
		good + " expires=soon":                     "keys:1:80: this is no time",
		good + " tenant=":                          "keys:1:80: the tenant is not a name",
		good + " tenant=a tenant=b":                "keys:1:89: the option stands twice",
		good + " rights=all":                       "keys:1:80: unknown option",
		"\ufeff" + good:                            "keys:1:1: the name is not a name",
		"n\x00 inference " + hexOf(oldKey):         "keys:1:1: the name is not a name",
		good + "\n" + "- {name: b, roles: [x, y]}": "keys:2:1: the name is not a name",
	} {
		keys, problems := Parse("keys", []byte(text))
		if len(keys) != 0 || len(problems) == 0 || !strings.HasPrefix(problems[0].String(), want) {
			t.Errorf("%q: %d keys, %v, want no keys and %q", text, len(keys), problems, want)
		}
		if said := fmt.Sprint(problems); strings.Contains(said, "CANARY") {
			t.Errorf("a key is repeated: %s", said)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("app inference,monitor sha256:" + hexOf(oldKey) + " tenant=acme expires=2027-01-31 # x\n")
	f.Add("app inference\n\t#\n" + appKey)
	f.Fuzz(func(t *testing.T, text string) {
		keys, problems := Parse("f", []byte(text))
		if len(keys) > 0 && len(problems) > 0 {
			t.Fatal("keys of a file with problems")
		}
		lines := strings.Split(text, "\n")
		for _, p := range problems {
			if p.Line < 1 || p.Line > len(lines) || p.Column < 1 || p.Column > len(lines[p.Line-1])+1 {
				t.Fatalf("%v stands nowhere in the text", p)
			}
		}
		if set := authn.NewKeys(keys); set.Len() != len(keys) {
			t.Fatalf("%d of %d keys are keys", set.Len(), len(keys))
		}
	})
}
