package vllm

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
)

// operationsJSON is the catalogue as it is written and reviewed.
//
//go:embed operations.json
var operationsJSON []byte

// catalogue is the decoded table and its indexes. It is built once and never changed.
type catalogue struct {
	all     []*Operation
	byID    map[string]*Operation
	byGroup map[Group][]*Operation
	routes  routes
}

var loaded = sync.OnceValue(func() *catalogue {
	c, err := decode(operationsJSON)
	if err != nil {
		panic("vllm: operations.json: " + err.Error()) // embedded and tested: it cannot fail in a built binary
	}
	return c
})

// decode reads a catalogue. A misspelt member is an error: it must never read as its zero value.
func decode(raw []byte) (*catalogue, error) {
	var rows []Operation
	if err := json.Unmarshal(raw, &rows, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("decoding: %w", err)
	}
	c := &catalogue{byID: map[string]*Operation{}, byGroup: map[Group][]*Operation{}, routes: routes{literal: map[route]*Operation{}}}
	for i := range rows {
		op := &rows[i]
		if c.byID[op.ID] != nil {
			return nil, fmt.Errorf("two operations are called %q", op.ID)
		}
		c.all = append(c.all, op)
		c.byID[op.ID] = op
		if err := c.routes.add(op); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(c.all, func(a, b *Operation) int { return strings.Compare(a.ID, b.ID) })
	for _, op := range c.all {
		c.byGroup[op.Group] = append(c.byGroup[op.Group], op)
	}
	return c, nil
}

// All lists the catalogue by id, other servers of vLLM included. The slice and what it points to must not be changed.
func All() []*Operation { return loaded().all }

// ByID finds an operation by its stable id.
func ByID(id string) (*Operation, bool) {
	op, ok := loaded().byID[id]
	return op, ok
}

// InGroup lists the operations of a group by id, also those that the group does not grant: see Operation.Grant.
// An unknown group is empty. The slice must not be changed.
func InGroup(g Group) []*Operation { return loaded().byGroup[g] }

// Groups lists the groups in the order of the documentation.
func Groups() []Group {
	return []Group{
		Inference, InferenceUnprefix, Probing, TokenizerInfo, Metrics, Control, LoRA, Development, Profiler, Documentation, Plugin,
	}
}
