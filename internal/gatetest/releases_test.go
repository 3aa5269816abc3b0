package gatetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/vllmtest"
)

// What only some releases of vLLM may be given: the published advisories that the rows of the tables name, held against
// a fake of each release. The caller does not read which advisory it is: it would learn the server's release.
func TestFieldsThatHarmSomeReleases(t *testing.T) {
	t.Parallel()
	chat := func(rest, part string) Request {
		return Request{Path: "/v1/chat/completions", Body: `{"model":"tiny",` + rest + `"messages":[{"role":"user","content":[{"type":"text","text":"hi"}` + part + `]}]}`}
	}
	const (
		sound   = `,{"type":"input_audio","input_audio":{"data":"UklGRiQAAABXQVZFZm10IA==","format":"wav"}}`
		address = `,{"type":"audio_url","audio_url":{"url":"data:audio/wav;base64,UklGRiQAAABXQVZFZm10IA=="}}`
		film    = `,{"type":"video_url","video_url":{"url":"data:video/jpeg;base64,AAAA"}}`
		untyped = `,{"video_url":"data:video/mp4;base64,AAAA"}`
	)
	gates := map[string]*Gate{}
	for _, version := range []string{"0.6.1", "0.8.5", "0.9.2", "0.10.1", "0.10.1.1", "0.18.1", "0.19.1", "0.20.2", "0.21.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0rc1", "0.30.0", "of our own"} {
		gates[version] = Start(t, Options{Fake: vllmtest.Options{Version: version}})
	}
	budgets := []string{"0.21.0", "0.27.1", "of our own"}
	penalties := []string{"0.6.1", "0.8.5", "0.9.2", "0.10.1", "0.10.1.1", "0.18.1", "0.19.1", "0.20.2", "0.21.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0rc1", "of our own"}
	stopIDs := []string{"0.6.1", "0.8.5", "0.9.2", "0.10.1", "0.10.1.1", "0.18.1", "0.19.1", "0.20.2", "0.21.0", "0.27.1", "0.28.0", "of our own"}
	parsers, grammars := []string{"0.10.1"}, []string{"0.8.5"}
	pictures := []string{"0.6.1", "0.8.5", "0.9.2", "0.10.1", "0.10.1.1", "0.18.1", "0.19.1", "0.20.2", "0.21.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0rc1", "0.30.0", "of our own"}
	picture := func(data string) string {
		return `,{"type":"image_url","image_url":{"url":"data:image\/png;base64,` + data + `"}}`
	}
	films := []string{"0.8.5", "0.9.2", "0.10.1", "0.10.1.1", "0.18.1", "of our own"}
	for what, row := range map[string]struct {
		request  Request
		parts    []part // of a form, in the place of request
		refused  []string
		advisory string
		pointer  string
	}{
		"a thinking budget":                {chat(`"thinking_token_budget":5,`, ""), nil, budgets, "GHSA-fpch-3xrf-7q96", "/thinking_token_budget"},
		"a thinking budget without end":    {chat(`"thinking_token_budget":-1,`, ""), nil, budgets, "GHSA-fpch-3xrf-7q96", "/thinking_token_budget"},
		"a thinking budget of completions": {Request{Path: "/v1/completions", Body: `{"model":"tiny","prompt":"a","thinking_token_budget":5}`}, nil, budgets, "GHSA-fpch-3xrf-7q96", "/thinking_token_budget"},
		"no thinking budget":               {chat(`"thinking_token_budget":null,`, ""), nil, nil, "", ""},
		"a penalty beside sound":           {chat(`"repetition_penalty":1.1,`, sound), nil, penalties, "CVE-2026-93841", "/repetition_penalty"},
		"another, beside sound as a URL":   {chat(`"frequency_penalty":-0.5,`, address), nil, penalties, "CVE-2026-93841", "/frequency_penalty"},
		"a third, after the sound":         {Request{Path: "/v1/chat/completions", Body: `{"model":"tiny","messages":[{"role":"user","content":[{"audio_url":"data:audio/wav;base64,UklGRiQAAABXQVZFZm10IA=="}]}],"presence_penalty":1}`}, nil, penalties, "CVE-2026-93841", "/presence_penalty"},
		"penalties at their defaults":      {chat(`"repetition_penalty":1.0,"frequency_penalty":0,"presence_penalty":-0.0,`, sound), nil, nil, "", ""},
		"penalties without sound":          {chat(`"repetition_penalty":1.1,"frequency_penalty":0.1,"presence_penalty":0.1,`, ""), nil, nil, "", ""},
		"a penalty of a transcription":     {Request{}, []part{{field("model"), "tiny"}, audioFile, {field("repetition_penalty"), "1.1"}}, penalties, "CVE-2026-93841", "/repetition_penalty"},
		"a transcription's default":        {Request{}, []part{{field("model"), "tiny"}, audioFile, {field("repetition_penalty"), "1.00"}, {field("frequency_penalty"), "0.0"}}, nil, "", ""},
		"stop ids beside min_tokens":       {chat(`"stop_token_ids":[2000000],"min_tokens":1,`, ""), nil, stopIDs, "vllm-project/vllm#54195", "/stop_token_ids"},
		"the same, the other way round":    {Request{Path: "/v1/completions", Body: `{"model":"tiny","min_tokens":1,"prompt":"a","stop_token_ids":[5]}`}, nil, stopIDs, "vllm-project/vllm#54195", "/stop_token_ids"},
		"stop ids alone":                   {chat(`"stop_token_ids":[5],"min_tokens":0,`, ""), nil, nil, "", ""},
		"min_tokens alone":                 {chat(`"stop_token_ids":[],"min_tokens":5,`, ""), nil, nil, "", ""},
		"a program as a picture":           {chat("", picture("JSFQUy1BZG9iZS0zLjAK")), nil, pictures, "Ghostscript", "/messages/0/content/1/image_url/url"},
		"the same for responses":           {Request{Path: "/v1/responses", Body: `{"model":"tiny","input":[{"role":"user","content":[{"type":"input_image","image_url":"data:;base64,JSFQUy1BZG9iZS0zLjAK"}]}]}`}, nil, pictures, "Ghostscript", "/input/0/content/0/image_url"},
		"a picture":                        {chat("", picture(`iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ\/+`)), nil, nil, "", ""},
		"sound in MP4":                     {chat("", strings.Replace(sound, "UklGRiQAAABXQVZFZm10IA==", "AAAAIGZ0eXBpc282", 1)), nil, stopIDs, "GHSA-m52c-39rh-f3gp", "/messages/0/content/1/input_audio/data"},
		"sound in MP4 as a URL":            {chat("", strings.Replace(address, "UklGRiQAAABXQVZFZm10IA==", "AAAAIGZ0eXBpc282", 1)), nil, stopIDs, "GHSA-m52c-39rh-f3gp", "/messages/0/content/1/audio_url/url"},
		"a transcription of MP4":           {Request{}, []part{{field("model"), "tiny"}, {audioFile.header, "\x00\x00\x00\x20ftypiso6"}}, stopIDs, "GHSA-m52c-39rh-f3gp", "/file"},
		"tools":                            {chat(`"tool_choice":"none","tools":[{"type":"function","function":{"name":"f"}}],`, ""), nil, parsers, "CVE-2025-9141", "/tools"},
		"tools of a developer's message":   {Request{Path: "/v1/chat/completions", Body: `{"model":"tiny","messages":[{"role":"developer","content":"x","tools":[{"type":"function","function":{"name":"f"}}]}]}`}, nil, parsers, "CVE-2025-9141", "/messages/0/tools"},
		"no tools":                         {chat(`"tools":[],"tool_choice":"auto",`, ""), nil, nil, "", ""},
		"a tool that is required":          {chat(`"tool_choice":"required",`, ""), nil, grammars, "CVE-2025-48944", "/tool_choice"},
		"a tool that is named":             {chat(`"tool_choice":{"type":"function","function":{"name":"f"}},`, ""), nil, grammars, "CVE-2025-48944", "/tool_choice"},
		"a schema":                         {chat(`"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{}}},`, ""), nil, grammars, "CVE-2025-48942", "/response_format"},
		"a schema of older releases":       {Request{Path: "/v1/completions", Body: `{"model":"tiny","prompt":"a","guided_json":{}}`}, nil, grammars, "CVE-2025-48942", "/guided_json"},
		"JSON without a schema":            {chat(`"response_format":{ "type": "json_object" },`, ""), nil, nil, "", ""},
		"a film":                           {chat("", film), nil, films, "CVE-2026-34755", "/messages/0/content/1/video_url"},
		"a film without a type":            {chat("", untyped), nil, films, "CVE-2026-22778", "/messages/0/content/1/video_url"},
	} {
		for version, g := range gates {
			before := g.Fake.Arrived()
			var a Answer
			if row.parts != nil {
				a = g.form(row.parts...)
			} else {
				row.request.Key = g.Secret("app")
				a = g.Do(row.request)
			}
			arrived := g.Fake.Arrived() - before
			if !slices.Contains(row.refused, version) {
				if a.Status != 200 || arrived != 1 {
					t.Errorf("%s on %s: %d %s", what, version, a.Status, a.Body)
				}
				continue
			}
			r := g.Record(a.ID())
			if a.Status != 403 || a.Reason() != "forbidden_parameter" || arrived != 0 || !strings.Contains(a.Body, `"param":"`+row.pointer+`"`) {
				t.Errorf("%s on %s: %d %s, %d arrived", what, version, a.Status, a.Body, arrived)
			}
			if strings.Contains(a.Body, "CVE") || strings.Contains(a.Body, "GHSA") || strings.Contains(a.Body, version) {
				t.Errorf("%s on %s: the caller reads %s", what, version, a.Body)
			}
			if !strings.Contains(r.Detail, row.advisory) {
				t.Errorf("%s on %s: recorded with %q", what, version, r.Detail)
			}
		}
	}
}

// Of two servers a request goes to the one that may have it.
func TestARequestGoesToAReleaseThatMayHaveIt(t *testing.T) {
	t.Parallel()
	g := Start(t, Options{Fake: vllmtest.Options{Version: "0.27.1"}, UpExtra: "models: [tiny]"})
	newer := vllmtest.Start(t, vllmtest.Options{Models: []string{"tiny", "newer"}})
	g.Reload(strings.Replace(g.Yaml(), "upstreams:\n", fmt.Sprintf("upstreams:\n  - {name: newer, url: %q}\n", newer.URL()), 1))
	ask := func(model, rest string) Answer {
		return g.Do(Request{Path: "/v1/chat/completions", Key: g.Secret("app"), Body: `{"model":"` + model + `","messages":[]` + rest + `}`})
	}
	g.Eventually("the newer server", func() bool { return ask("newer", "").Status == 200 })
	older, before := g.Fake.Arrived(), newer.Arrived()
	for range 6 {
		if a := ask("tiny", `,"thinking_token_budget":5`); a.Status != 200 {
			t.Errorf("%d %s", a.Status, a.Body)
		}
	}
	if a, b := g.Fake.Arrived()-older, newer.Arrived()-before; a != 0 || b != 6 {
		t.Errorf("%d went to the older one, %d to the newer", a, b)
	}
}
