package vllm

import "testing"

func TestTablesParse(t *testing.T) {
	set, err := parseTables(tableFiles)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range set.tables {
		t.Logf("%v: %d fields", table.Operations, len(table.Body.Fields))
	}
}
