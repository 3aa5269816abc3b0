//go:build !windows

package store

// ownersAlone: modes say who else can reach a file here.
const ownersAlone = true
