//go:build !linux

package audit

var limitedChild func(dir string)
