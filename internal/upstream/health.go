package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/ascii"
	"github.com/vallum/vallum/internal/vllm"
)

// Getter asks the server for a path, with its key or without. The body is bounded by whoever implements it.
type Getter interface {
	Get(ctx context.Context, path string, withKey bool) (status int, body []byte, err error)
}

// How often a server is asked, and how long an answer may take. /health stays 200 on a frozen engine (http.md: the
// engine process stopped, /health 200), so it tells death, never life: requests' own timeouts tell the rest.
const (
	aliveEvery    = 5 * time.Second
	deadEvery     = time.Second
	askTimeout    = 3 * time.Second
	discoverEvery = 30 * time.Second // LoRA adapters come and go
)

// Run asks the server for its health and what it serves, until ctx ends.
func (s *Server) Run(ctx context.Context) {
	var discovered time.Time
	for {
		if s.check(ctx) && time.Since(discovered) >= discoverEvery && s.discover(ctx) {
			discovered = time.Now()
		}
		every := aliveEvery
		if !s.State().Alive {
			every, discovered = deadEvery, time.Time{}
		}
		if s.misses > 0 {
			every = deadEvery
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-time.After(every):
		}
	}
}

// check asks for /health and reports whether the server may be asked for more.
func (s *Server) check(ctx context.Context) bool {
	status, _, err := s.ask(ctx, "/health", true)
	if ctx.Err() != nil {
		return false
	}
	switch {
	case timedOut(err) && s.State().Alive && s.misses == 0:
		// One large body keeps vLLM's event loop busy for seconds (http.md: /health blocked for 5.5 s): ask again
		s.misses++
		return false
	case isOurs(err) && s.State().Alive:
		return false
	case err != nil:
		s.set(func(st *State) { st.Alive, st.Problem = false, err.Error() })
		return false
	case status != http.StatusOK:
		s.set(func(st *State) { st.Alive, st.Problem = false, fmt.Sprintf("GET /health answers %d", status) })
		return false
	}
	if st := s.State(); (st.Version == "" || !st.Alive) && !s.discover(ctx) { // it may come back as another release
		return false
	}
	s.misses = 0
	s.set(func(st *State) { st.Alive, st.Problem = true, "" })
	return true
}

// timedOut reports whether a question got no answer in time, as opposed to no connection.
func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

// discover asks what the server serves, which release it is, and whether its key check works. It reports whether the
// server answered.
func (s *Server) discover(ctx context.Context) bool {
	status, body, err := s.ask(ctx, "/v1/models", true)
	if timedOut(err) && s.State().Alive {
		return false // /health tells death
	}
	if err != nil || status != http.StatusOK {
		s.set(func(st *State) { st.Alive, st.Problem = false, modelsProblem(status, err, s.spec.HasKey) })
		return false
	}
	found, err := parseModels(body)
	if err != nil {
		s.set(func(st *State) { st.Alive, st.Problem = false, fmt.Sprintf("GET /v1/models: %v", err) })
		return false
	}
	version, release, assumed := s.release(ctx)
	warning := s.warn(ctx)
	s.set(func(st *State) {
		found = dated(found, st.Models)
		st.Models, st.Version, st.Release, st.Assumed = s.serves(found), version, release, assumed
		st.Warning = strings.TrimSpace(strings.Join([]string{s.missing(found), s.contradiction(release), warning}, " "))
	})
	return true
}

// release asks the server which release it is. Where it answers and tells none, what the configuration says is assumed.
// Where it does not answer nothing is: what it told a moment ago may have been something else. An unknown release has
// none of the newer fields, and each that does harm to some.
func (s *Server) release(ctx context.Context) (version string, release vllm.Release, assumed bool) {
	status, body, err := s.ask(ctx, "/version", true)
	if err != nil {
		return "unknown", vllm.Release{}, false
	}
	version = "unknown"
	var v struct{ Version string }
	if status == http.StatusOK && json.Unmarshal(body, &v) == nil && v.Version != "" && len(v.Version) <= 64 {
		version = v.Version
	}
	release, err = vllm.ParseRelease(version)
	if err != nil && s.spec.Release.Known() {
		return s.spec.Release.String(), s.spec.Release, true
	}
	return version, release, false
}

// contradiction says that the configuration names another release than the server.
func (s *Server) contradiction(told vllm.Release) string {
	if !told.Known() || !s.spec.Release.Known() || told.Compare(s.spec.Release) == 0 {
		return ""
	}
	return fmt.Sprintf("it says that it is vLLM %s, and the configuration says release: %s. What it says counts.", told, s.spec.Release)
}

// dated gives known models their first date again: vLLM's "created" is the time of the question, and would make every
// look a change (entrypoints/openai/models/protocol.py, ModelCard).
func dated(found, known []Model) []Model {
	for i := range found {
		if at := slices.IndexFunc(known, func(m Model) bool { return m.Name == found[i].Name }); at >= 0 && known[at].Created > 0 {
			found[i].Created = known[at].Created
		}
	}
	return found
}

// serves is what the configuration says that the server serves, with what the server knows of it; else all it says.
func (s *Server) serves(found []Model) []Model {
	if s.spec.Models == nil {
		return found
	}
	models := named(s.spec.Models)
	for i := range models {
		if at := slices.IndexFunc(found, func(m Model) bool { return m.Name == models[i].Name }); at >= 0 {
			models[i] = found[at]
		}
	}
	return models
}

func (s *Server) missing(found []Model) string {
	for _, name := range s.spec.Models {
		if !slices.ContainsFunc(found, func(m Model) bool { return m.Name == name }) {
			return fmt.Sprintf("it does not serve %q, which the configuration says.", name)
		}
	}
	return ""
}

// warn sends a request without the key: vLLM's check can be off although a key is set. --root-path / and any beginning
// of /v1 switch it off (vLLM 0.32.0, entrypoints/serve/middleware/authenticate.py: path.removeprefix(root_path)).
func (s *Server) warn(ctx context.Context) string {
	if !s.spec.HasKey {
		return ""
	}
	status, _, err := s.ask(ctx, "/v1/models", false)
	if err == nil && status != http.StatusUnauthorized {
		return fmt.Sprintf("it answers /v1/models with %d although no key was sent: its key check is off. Start it with --api-key and without --root-path.", status)
	}
	return ""
}

func (s *Server) ask(ctx context.Context, path string, withKey bool) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	status, body, err := s.get.Get(ctx, path, withKey)
	if err != nil && ctx.Err() != nil { // its connection was closed for that, by us
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return status, body, err
}

func modelsProblem(status int, err error, hasKey bool) string {
	switch {
	case err != nil:
		return err.Error()
	case status == http.StatusUnauthorized && hasKey:
		return "it refuses the key: GET /v1/models answers 401. Is key_file the key that vLLM was started with?"
	case status == http.StatusUnauthorized:
		return "it wants a key: GET /v1/models answers 401. Name it with key_file, or --upstream-key-file"
	}
	return fmt.Sprintf("GET /v1/models answers %d", status)
}

func parseModels(body []byte) ([]Model, error) {
	var list struct {
		Data []struct {
			ID          string `json:"id"`
			Parent      string `json:"parent"`
			Created     int64  `json:"created"`
			MaxModelLen *int64 `json:"max_model_len"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("not a list of models: %w", err)
	}
	if len(list.Data) > maxModels {
		return nil, fmt.Errorf("a list of %d models: at most %d are taken", len(list.Data), maxModels)
	}
	var models []Model
	for _, d := range list.Data {
		if d.ID == "" || len(d.ID) > 256 || !ascii.Visible(d.ID) {
			return nil, fmt.Errorf("not a list of models: the id %.40q is empty, longer than 256 bytes or not printable ASCII", d.ID)
		}
		m := Model{Name: d.ID, Created: d.Created}
		if d.MaxModelLen != nil {
			m.MaxModelLen = max(*d.MaxModelLen, 0)
		}
		models = append(models, m)
	}
	// vLLM gives an adapter's card no length (entrypoints/openai/models/serving.py of 0.32.0): it has its parent's.
	for i, d := range list.Data {
		if base := slices.IndexFunc(models, func(m Model) bool { return m.Name == d.Parent }); d.MaxModelLen == nil && base >= 0 {
			models[i].MaxModelLen = models[base].MaxModelLen
		}
	}
	return models, nil
}

// maxModels bounds what a server may list: each model is a name in policies, labels and lists.
const maxModels = 1024
