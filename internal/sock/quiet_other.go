//go:build !unix

package sock

// Quiet reports whether a socket is open and has nothing to read; here it cannot be asked, and none is.
func Quiet(uintptr) bool { return false }
