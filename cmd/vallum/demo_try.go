package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/audit"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/vllm"
)

// demoResult is everything that the demo saw, for --json.
type demoResult struct {
	Direct   string            `json:"vllm"`
	Gateway  string            `json:"gateway"`
	State    string            `json:"state"`
	Model    string            `json:"model"`
	Keys     map[string]string `json:"keys"`
	Rows     []demoRow         `json:"rows"`
	Open     int               `json:"open_directly"`      // routes that vLLM served to a stranger although its key was set
	OpenGate int               `json:"open_behind_vallum"` // routes that the gateway served to a stranger
	Wrong    int               `json:"wrong"`              // rows where the gateway let through or refused what it should not
	Chat     demoChat          `json:"chat"`
	Records  demoRecords       `json:"records"`
}

// demoRow is one route, tried in four ways.
type demoRow struct {
	Operation string     `json:"operation"`
	Group     vllm.Group `json:"group"`
	Method    string     `json:"method"`
	Path      string     `json:"path"`
	Direct    demoAnswer `json:"directly"`
	NoKey     demoAnswer `json:"without_key"`
	Ordinary  demoAnswer `json:"ordinary_key"`
	Admin     demoAnswer `json:"admin_key"`
	Wrong     string     `json:"wrong,omitempty"`
}

// demoAnswer is what one try of a route came to.
type demoAnswer struct {
	Status  int    `json:"status"`
	Did     string `json:"did,omitempty"`    // directly: what vLLM did, in a word
	Reason  string `json:"reason,omitempty"` // why the gateway refused
	Reached bool   `json:"reached_vllm"`     // the fake saw the request
	id      string // X-Request-Id
}

// demoGroups are the security guide's groups, the dangerous ones first.
var demoGroups = []vllm.Group{
	vllm.Development, vllm.Profiler, vllm.Control, vllm.LoRA, vllm.TokenizerInfo, vllm.Plugin, vllm.InferenceUnprefix,
	vllm.Documentation, vllm.Metrics, vllm.Probing, vllm.Inference,
}

// demoClient goes straight to loopback: no proxy of the environment, no redirects followed.
var demoClient = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 4, DisableCompression: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Timeout:       10 * time.Second,
}

// tryAll tries every route of the API port. Mounts are left out: they are the same path as the route beside them.
func (d *demo) tryAll(ctx context.Context, each func(demoRow)) ([]demoRow, error) {
	var rows []demoRow
	for _, group := range demoGroups {
		for _, op := range vllm.InGroup(group) {
			if op.Server != "" || op.Mount {
				continue
			}
			row, err := d.try(ctx, op)
			if err != nil {
				return nil, fmt.Errorf("trying %s %s: %w", op.Method, op.Path, err)
			}
			rows = append(rows, row)
			each(row)
		}
	}
	return rows, nil
}

func (d *demo) try(ctx context.Context, op *vllm.Operation) (demoRow, error) {
	path := strings.NewReplacer("{model}", d.model, "{adapter_name}", "demo", "{response_id}", "resp_1").Replace(op.Path)
	row := demoRow{Operation: op.ID, Group: op.Group, Method: op.Method, Path: path}
	for _, one := range []struct {
		to, key string
		answer  *demoAnswer
	}{{d.direct, "", &row.Direct}, {d.gate, "", &row.NoKey}, {d.gate, d.ordinary, &row.Ordinary}, {d.gate, d.admin, &row.Admin}} {
		var err error
		if *one.answer, err = d.ask(ctx, op, one.to+path, one.key); err != nil {
			return row, err
		}
	}
	row.Direct.Did, row.Direct.Reason = didWord(op, row.Direct.Status), ""
	row.Wrong = judge(op, row)
	return row, nil
}

// ask sends one request, and looks whether it arrived at the fake.
func (d *demo) ask(ctx context.Context, op *vllm.Operation, url, key string) (demoAnswer, error) {
	method, body, kind := op.Method, demoBodies[op.ID], "application/json"
	if body == "" && op.Request == vllm.JSONBody {
		body = "{}"
	}
	if op.Request == vllm.FormBody {
		body, kind = demoForm(d.model)
	}
	if method == "WEBSOCKET" {
		method = http.MethodGet
	}
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return demoAnswer{}, err
	}
	if body != "" {
		r.Header.Set("Content-Type", kind)
	}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	if op.Method == "WEBSOCKET" {
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "websocket")
		r.Header.Set("Sec-WebSocket-Version", "13")
		r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==") // RFC 6455 §1.3
	}
	before := d.fake.Arrived()
	res, err := demoClient.Do(r)
	if err != nil {
		return demoAnswer{}, err
	}
	_, err = io.Copy(io.Discard, res.Body)
	a := demoAnswer{Status: res.StatusCode, Reason: res.Header.Get("X-Vallum-Reason"), Reached: d.fake.Arrived() > before, id: res.Header.Get("X-Request-Id")}
	return a, errors.Join(err, res.Body.Close())
}

// judge says what is wrong with a row: something that arrived at vLLM, or was answered, although no rule grants it, or
// was refused although one does. What arrived is the fake's word, not the gateway's.
func judge(op *vllm.Operation, row demoRow) string {
	never := []vllm.Group{vllm.Development, vllm.Profiler, vllm.TokenizerInfo, vllm.Plugin, vllm.Documentation}
	for _, one := range []struct {
		who, role string
		a         demoAnswer
	}{{"without a key", "", row.NoKey}, {"with the ordinary key", "inference", row.Ordinary}, {"with the admin key", "operator", row.Admin}} {
		granted := slices.Contains(policy.BuiltIn[one.role], op.ID) && !slices.Contains(never, op.Group)
		passed := one.a.Reached || one.a.Status < 400
		switch {
		case passed && !granted:
			return fmt.Sprintf("%s %s passed %s", row.Method, row.Path, one.who)
		case granted && one.a.Status != http.StatusOK:
			return fmt.Sprintf("%s %s did not pass %s: %d %s", row.Method, row.Path, one.who, one.a.Status, one.a.Reason)
		}
	}
	return ""
}

func (r *demoResult) count() {
	for _, row := range r.Rows {
		if row.Direct.Status < 400 {
			r.Open++
		}
		if row.NoKey.Status < 400 || row.NoKey.Reached {
			r.OpenGate++
		}
		if row.Wrong != "" {
			r.Wrong++
		}
	}
}

// demoChat is one streamed chat through the gate.
type demoChat struct {
	Text      string  `json:"text"`
	Events    int     `json:"events"`
	FirstMS   float64 `json:"first_event_ms"`
	LastMS    float64 `json:"last_event_ms"`
	RequestID string  `json:"request_id"`
}

// chat streams one with the ordinary key and hands over each piece of text when it arrives.
func (d *demo) chat(ctx context.Context, piece func(string)) (demoChat, error) {
	body := []byte(`{"model":"` + d.model + `","stream":true,"messages":[{"role":"user","content":"Say something."}]}`)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, d.gate+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return demoChat{}, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+d.ordinary)
	began := time.Now()
	res, err := demoClient.Do(r)
	if err != nil {
		return demoChat{}, err
	}
	c := demoChat{RequestID: res.Header.Get("X-Request-Id")}
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var event struct {
			Choices []struct{ Delta struct{ Content string } }
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return c, errors.Join(fmt.Errorf("an event is not JSON: %w", err), res.Body.Close())
		}
		c.Events++
		c.LastMS = audit.Millis(time.Since(began))
		if c.Events == 1 {
			c.FirstMS = c.LastMS
		}
		for _, choice := range event.Choices {
			c.Text += choice.Delta.Content
			piece(choice.Delta.Content)
		}
	}
	if res.StatusCode != http.StatusOK || c.Text == "" {
		err = fmt.Errorf("status %d, %d events", res.StatusCode, c.Events)
	}
	return c, errors.Join(err, lines.Err(), res.Body.Close())
}

// demoRecords is what the audit log says of the demo.
type demoRecords struct {
	Dir   string         `json:"dir"`
	Count map[string]int `json:"count"`           // records by event
	Chain string         `json:"chain,omitempty"` // what `vallum log verify` says once the gateway has ended
	shown []audit.Record
}

// records reads the log, once the chat's end is in it.
func (d *demo) records(ctx context.Context, result demoResult) (demoRecords, error) {
	out := demoRecords{Dir: filepath.Join(d.state, "audit"), Count: map[string]int{}}
	if err := d.awaitEnd(ctx, out.Dir, result.Chat.RequestID); err != nil {
		return out, err
	}
	ids := map[string]bool{result.Chat.RequestID: true}
	for _, row := range result.Rows {
		switch row.Operation {
		case "rpc.collective":
			ids[row.Ordinary.id], ids[row.Admin.id] = true, true
		case "engine.pause":
			ids[row.Ordinary.id], ids[row.Admin.id] = true, true
		}
	}
	for r, err := range audit.Read(out.Dir, time.Time{}, func(audit.Record) bool { return true }) {
		if err != nil {
			return out, err
		}
		out.Count[string(r.Event)]++
		if ids[r.ID] {
			out.shown = append(out.shown, r)
		}
	}
	return out, nil
}

// awaitEnd waits for the record of a request's end, which is written just after its last byte.
func (d *demo) awaitEnd(ctx context.Context, dir, id string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(3 * time.Second)
	for {
		records, err := audit.Find(dir, id)
		if err == nil && records[len(records)-1].Event == audit.Ended {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return fmt.Errorf("the chat's end is not on record: %w", err)
		}
	}
}
