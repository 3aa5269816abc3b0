package identity

import (
	"strings"
	"testing"
)

func TestNobodyHoldsNothing(t *testing.T) {
	for _, p := range []Principal{Nobody, {}, New("", "id", "t", []string{"r"}), New("n", "", "t", []string{"r"})} {
		if !p.IsNobody() || p.Has("r") || len(p.Roles()) != 0 || p.Tenant() != "" {
			t.Errorf("%+v is somebody", p)
		}
	}
}

func TestATenantIsTheNameUnlessGiven(t *testing.T) {
	roles := []string{"a"}
	p := New("app", "k1", "", roles)
	roles[0] = "operator"
	if p.Tenant() != "app" || !p.Has("a") || p.Has("operator") {
		t.Errorf("%+v", p)
	}
	if New("app", "k1", "acme", nil).Tenant() != "acme" {
		t.Error("the tenant that was given is lost")
	}
}

func TestNamesReadAlikeEverywhere(t *testing.T) {
	for _, name := range []string{"a", "9", "app", "ci-2", "Team_A.b@c", strings.Repeat("a", 64)} {
		if !IsName(name) {
			t.Errorf("%q is no name", name)
		}
	}
	for _, name := range []string{"", ".a", "-a", "_a", "@a", "a b", "a\n", "a\x00", "a/b", "a,b", "a=b", "a\"", "ä", "a\u0301", strings.Repeat("a", 65)} {
		if IsName(name) {
			t.Errorf("%q is a name", name)
		}
	}
}
