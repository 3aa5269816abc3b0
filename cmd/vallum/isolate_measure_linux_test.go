package main

import (
	"strings"
	"testing"
	"time"
)

// Consent has an end, and half of what was meant is not guessed.
func TestMeasuringThatWasAskedForWrongly(t *testing.T) {
	for name, row := range map[string]struct {
		m        measuring
		outsider bool
		want     string
	}{
		"nothing":                {measuring{}, false, ""},
		"measure":                {measuring{measure: true, port: 1}, false, ""},
		"serve":                  {measuring{serve: longestServing, port: 1, bare: true}, false, ""},
		"serve for too long":     {measuring{serve: longestServing + time.Second, port: 1}, false, "is not a time of at most 10m"},
		"serve for less than 0":  {measuring{serve: -time.Second, port: 1}, false, "is not a time of at most 10m"},
		"both sides at once":     {measuring{measure: true, serve: time.Minute, port: 1}, false, "one measures, the other serves"},
		"bare alone":             {measuring{bare: true, port: 1}, false, "goes with"},
		"no port":                {measuring{measure: true}, false, "0 is not a port"},
		"measure as an outsider": {measuring{measure: true, port: 1}, true, "no tunnel to measure"},
		"serve as an outsider":   {measuring{serve: time.Minute, port: 1}, true, "no tunnel to measure"},
	} {
		err := row.m.check(row.outsider)
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
