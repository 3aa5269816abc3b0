package main

import (
	"strings"
	"testing"
	"time"
)

// A peer that was heard once is not one that is heard.
func TestAPeerThatFellSilentIsToldSo(t *testing.T) {
	now := time.Now()
	for want, last := range map[string]time.Time{
		"never heard":     {},
		"heard 5s ago":    now.Add(-5 * time.Second),
		"heard 2m30s ago": now.Add(-150 * time.Second),
		"heard 3m20s ago, so that nothing comes from it now; what does vallum isolate status say there?": now.Add(-200 * time.Second),
	} {
		if got := heard(last, now, false); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := heard(time.Time{}, now, true); !strings.Contains(got, "is the pre-shared key there the same?") {
		t.Errorf("with a pre-shared key: %q", got)
	}
}

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
