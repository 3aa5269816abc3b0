//go:build conformance

package conformance

func clientsPassUnchanged() []proof { return nil }
