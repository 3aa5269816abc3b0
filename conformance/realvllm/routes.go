package realvllm

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Route is one line of the table that vLLM prints at start.
type Route struct {
	Method string `json:"method"`
	Path   string `json:"path"`
}

func (r Route) String() string { return r.Method + " " + r.Path }

// routeLine is what vllm/entrypoints/launcher.py logs for each route:
// "Route: /v1/models, Methods: GET" and for WebSocket routes no methods.
var routeLine = regexp.MustCompile(`Route: ([^,\s]+)(?:, Methods: ([A-Z, ]+))?`)

// Routes is the route table that the running server printed, sorted. A
// WebSocket route has the method WEBSOCKET.
func (s *Server) Routes() ([]Route, error) {
	f, err := os.Open(s.Log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []Route
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := routeLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		methods := "WEBSOCKET"
		if m[2] != "" {
			methods = m[2]
		}
		for method := range strings.SplitSeq(methods, ",") {
			out = append(out, Route{Method: strings.TrimSpace(method), Path: m[1]})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the routes of vLLM %s: %w", s.Name, err)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("vLLM %s printed no route: the log's form has changed; see %s", s.Name, s.Log)
	}
	slices.SortFunc(out, func(a, b Route) int { return strings.Compare(a.Path+" "+a.Method, b.Path+" "+b.Method) })
	return slices.Compact(out), nil
}
