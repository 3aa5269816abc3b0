package urlpath

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"testing"
)

func TestParseAcceptsOneSpelling(t *testing.T) {
	for target, want := range map[string]string{
		"/":                                  "/",
		"/v1/models":                         "/v1/models",
		"/v1/messages?beta=true":             "/v1/messages",
		"/v1/models?x=%2e%2e/../#":           "/v1/models",
		"/v1/models/tiny":                    "/v1/models/tiny",
		"/v1/models/org%2Fname":              "/v1/models/org/name",
		"/v1/models/org%2fname:latest@2+fp8": "/v1/models/org/name:latest@2+fp8",
		"/v1/chat/completions":               "/v1/chat/completions",
		"/V1/models":                         "/V1/models", // another path, and unknown: vLLM's routes are case-sensitive
		"/v1/responses/resp_1234-abc/cancel": "/v1/responses/resp_1234-abc/cancel",
	} {
		got, err := Parse(target)
		if err != nil || got.String() != want {
			t.Errorf("Parse(%q) = %q, %v; want %q", target, got, err, want)
		}
	}
}

// Every row was sent to a real vLLM 0.32.0: several of them reach /pause or /v1/models there.
func TestParseRefusesEveryOtherSpelling(t *testing.T) {
	for target, what := range map[string]string{
		"":                                       "no path in the target",
		"*":                                      "no path in the target",
		"evil.com:443":                           "no path in the target",
		"http://evil/v1/models":                  "no path in the target",
		"v1/models":                              "no path in the target",
		"/%70ause":                               "percent-encoding",
		"/v1%2Fmodels":                           "percent-encoding",
		"/%zz":                                   "percent-encoding",
		"/v1/models/%2e%2e/pause":                "percent-encoding",
		"/v1/models/a%252Fb":                     "percent-encoding",
		"/v1/models/..%2F..%2Fpause":             "dot segment",
		"/v1/models/a%2F":                        "trailing slash",
		"//v1/models":                            "empty segment",
		"/v1//models":                            "empty segment",
		"/v1/models/":                            "trailing slash",
		"/pause/":                                "trailing slash",
		"/./v1/models":                           "dot segment",
		"/x/../v1/models":                        "dot segment",
		"/v1/..":                                 "dot segment",
		"/v1;x/models":                           "';'",
		"/v1/models\\..\\health":                 "'\\\\'",
		"/v1/models\x00":                         "control byte",
		"/v1/models\t":                           "control byte",
		"/v1/models\x7f":                         "control byte",
		"/v1/mod\xc3\xa9ls":                      "not ASCII",
		"/v1/models\"":                           "'\"'",
		"/v1/models#x":                           "'#'",
		"/v1/models/x y":                         "' '",
		"/health:8000":                           "':'",
		"/" + strings.Repeat("a", 600):           "too long",
		"/v1/models/" + strings.Repeat("a", 600): "too long",
	} {
		got, err := Parse(target)
		var a *Ambiguous
		if !errors.As(err, &a) || got != (Path{}) {
			t.Errorf("Parse(%q) = %q, %v; want a refusal", target, got, err)
			continue
		}
		if !strings.Contains(a.What, what) {
			t.Errorf("Parse(%q): %q does not say %q", target, a.What, what)
		}
	}
}

// An accepted path is left unchanged by every reader we know: decoding, cleaning and Go's URL parser.
func FuzzParseLeavesOneReading(f *testing.F) {
	for _, s := range []string{"/v1/models", "/%70ause", "//v1", "/v1/models/a%2Fb", "/a/../b", "/v1/x;y", "/é", "/a\"b", "/?q", "/v1/models/a:b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		p, err := Parse(target)
		if err != nil {
			if p.String() != "" {
				t.Fatalf("refused, yet a path: %q", p)
			}
			return
		}
		s := p.String()
		if dec, err := url.PathUnescape(s); err != nil || dec != s {
			t.Fatalf("decoding changes %q to %q (%v)", s, dec, err)
		}
		if clean := path.Clean(s); clean != s {
			t.Fatalf("cleaning changes %q to %q", s, clean)
		}
		u, err := url.ParseRequestURI(s)
		if err != nil || u.Path != s || u.EscapedPath() != s && !strings.HasPrefix(s, modelPrefix) || u.RawQuery != "" || u.Host != "" {
			t.Fatalf("net/url reads %q as %#v (%v)", s, u, err)
		}
	})
}
