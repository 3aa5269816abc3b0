package inspect

import (
	"github.com/vallum/vallum/internal/policy"
)

type form struct{}

func readForm(r Request, lim Limits) (*Doc, error) {
	return nil, badBody("", 0, "forms are not accepted")
}
func (f *form) rewrite(edits []policy.Edit) (Body, error) { return Body{}, nil }
func (f *form) close() error                              { return nil }
