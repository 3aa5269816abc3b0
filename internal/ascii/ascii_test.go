package ascii

import "testing"

func TestEveryByte(t *testing.T) {
	for c := range 256 {
		s := "a" + string([]byte{byte(c)}) + "z"
		if printable := c >= 0x20 && c <= 0x7e; Printable(s) != printable {
			t.Errorf("%q: printable is not %t", s, printable)
		}
		if visible := c >= 0x21 && c <= 0x7e; Visible(s) != visible {
			t.Errorf("%q: visible is not %t", s, visible)
		}
	}
	if !Printable("") || !Visible("") {
		t.Error("nothing holds something else")
	}
}
