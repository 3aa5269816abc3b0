package identity

import "testing"

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
