// Package ascii knows which text reads alike in a header, a log line and a metric's label.
// It refuses control bytes and all that is not ASCII; what a text means is for others.
package ascii

// Printable reports whether every byte is visible or a space. The empty text is printable.
func Printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Visible is Printable, and no space either: RFC 9110's VCHAR.
func Visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
