package config

import (
	"slices"
	"time"

	"github.com/vallum/vallum/internal/policy"
)

// What holds where the file says nothing.
const (
	maxBuffered = 256 << 20        // bytes of memory for bodies
	maxAudio    = 10 * time.Minute // vLLM's own bound on sound

	leastConnections, mostConnections = 8, 1_000_000
)

// Defaults fills in what the file does not say. Nothing that it fills in opens anything.
func (c *Config) Defaults() {
	c.Version = 1
	if len(c.Listen) == 0 {
		c.Listen = []Listener{{Address: "127.0.0.1:8080"}}
	}
	text(&c.Probes, "127.0.0.1:8081")
	text(&c.Errors, "replace")
	text(&c.Audit.Sync, "interval")
	size(&c.Audit.Segment, 64<<20)
	length(&c.Audit.Rotation, 24*time.Hour)
	size(&c.Bodies.MaxJSON, 8<<20)
	size(&c.Bodies.MaxForm, 32<<20)
	size(&c.Bodies.MaxBuffered, maxBuffered)
	size(&c.Bodies.MaxReply, 64<<20)
	length(&c.Bodies.MaxAudio, maxAudio)
	length(&c.Timeouts.Header, 10*time.Second)
	length(&c.Timeouts.Body, time.Minute)
	length(&c.Timeouts.Idle, 90*time.Second)
	length(&c.Timeouts.Write, 30*time.Second)
	length(&c.Timeouts.Connect, 5*time.Second)
	length(&c.Timeouts.FirstByte, 10*time.Minute)
	length(&c.Timeouts.BetweenEvents, 2*time.Minute)
	length(&c.Timeouts.Drain, 30*time.Second)
	if c.Isolate != nil {
		c.Isolate.defaults()
	}
	for name, r := range c.Roles {
		text(&r.Unknown, "drop")
		if r.Limits.Burst == 0 {
			r.Limits.Burst = r.Limits.RequestsPerMinute
		}
		c.Roles[name] = r
	}
}

func text(s *string, d string) {
	if *s == "" {
		*s = d
	}
}

func size(s *Size, d Size) {
	if *s == 0 {
		*s = d
	}
}

func length(t *Duration, d time.Duration) {
	if *t == 0 {
		*t = Duration(d)
	}
}

// Rules is what the policy is built from: the roles of the file, and the models that the file names or, where it is
// given, that the upstreams were found to serve. The names are those of the roles, in the order of the rules.
func (c *Config) Rules(found []policy.Model) (names []string, rules policy.Rules) {
	rules.Models, rules.Aliases = found, c.Aliases
	for _, u := range c.Upstreams {
		rules.Upstreams = append(rules.Upstreams, u.Name)
		if found == nil {
			rules.Models = addModels(rules.Models, u)
		}
	}
	for name := range c.Roles {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		rules.Roles = append(rules.Roles, c.Roles[name].rule(name))
	}
	return names, rules
}

func addModels(models []policy.Model, u Upstream) []policy.Model {
	for _, name := range u.Models {
		i := slices.IndexFunc(models, func(m policy.Model) bool { return m.Name == name })
		if i < 0 {
			models = append(models, policy.Model{Name: name, Upstreams: []string{u.Name}})
			continue
		}
		models[i].Upstreams = append(models[i].Upstreams, u.Name)
	}
	return models
}

func (r Role) rule(name string) policy.Role {
	out := policy.Role{
		Name: name, Models: r.Models, MaxOutputTokens: int64(r.MaxOutput), RefuseUnknown: r.Unknown == "refuse",
		Limits: policy.Limits{
			RequestsPerMinute: int64(r.Limits.RequestsPerMinute), Burst: int64(r.Limits.Burst),
			Concurrent: int64(r.Limits.Concurrent), TokensPerMinute: int64(r.Limits.TokensPerMinute),
		},
	}
	for _, op := range r.Operations {
		out.Operations = append(out.Operations, policy.OperationName{Name: op.ID, Acknowledge: op.Acknowledge})
	}
	return out
}

func sorted(list []string) []string {
	slices.Sort(list)
	return list
}
