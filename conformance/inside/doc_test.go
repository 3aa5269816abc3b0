package inside

import "testing"

func TestAnOutcomeIsReadAsItWasSaid(t *testing.T) {
	for _, o := range []Outcome{{Name: Reboot, Shown: true}, {Name: "a\nb", Why: "\"c\"\r\n"}} {
		got, ok := Parse(o.Line())
		if !ok || got != o {
			t.Errorf("%+v is read as %+v, %v", o, got, ok)
		}
	}
	for _, line := range []string{"", "outcome", "outcome {", "=== RUN TestX", `{"Name":"x","Shown":true}`} {
		if o, ok := Parse(line); ok || o.Shown {
			t.Errorf("%q is read as %+v", line, o)
		}
	}
	seen := map[string]bool{}
	for _, name := range Names() {
		if name == "" || seen[name] {
			t.Errorf("the name %q is there twice, or empty", name)
		}
		seen[name] = true
	}
}
