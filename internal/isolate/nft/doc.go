// Package nft loads the rules of a plan into the kernel, in one batch, and reads them back.
// It refuses to touch any table but its own, and to call rules loaded that it did not read back equal.
package nft
