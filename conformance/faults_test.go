//go:build conformance

package conformance

func faults() []proof { return nil }
