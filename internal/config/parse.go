package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/vallum/vallum/internal/policy"
)

// SecretInFile is said of a secret that stands in the file itself; the line is then not shown.
const SecretInFile = "a secret must not stand in this file"

// maxFile bounds a configuration's bytes.
const maxFile = 4 << 20

// Parse reads a configuration. The error is a *Problems with everything that is wrong, or nil.
func Parse(name string, b []byte) (*Config, error) {
	c, d, p := decodeFile(name, b)
	if d == nil {
		return nil, p
	}
	c.checkDecoded(d)
	if len(d.problems) > 0 {
		p.List = d.problems
		p.sort()
		return nil, p
	}
	c.Defaults()
	return c, nil
}

// decodeFile decodes the one document of a file, without judging what it says. The decoder is nil when there is none to
// judge: then p has the problem.
func decodeFile(name string, b []byte) (c *Config, d *decoder, p *Problems) {
	p = &Problems{File: name, text: strings.Split(string(b), "\n")}
	if len(b) > maxFile {
		p.List = append(p.List, Problem{Line: 1, Column: 1, Path: "file", What: "is larger than 4 MiB", Right: "a configuration"})
		return nil, nil, p
	}
	var doc yaml.Node
	if err := yaml.Load(b, &doc); err != nil {
		p.List = append(p.List, syntaxProblem(err, p.text))
		return nil, nil, p
	}
	c, d = &Config{}, &decoder{where: map[string]*yaml.Node{}}
	if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
		d.value(doc.Content[0], "", reflect.ValueOf(c).Elem())
	} else {
		d.say(&yaml.Node{Line: 1, Column: 1}, "file", "is not a mapping", "version: 1 and what follows")
	}
	return c, d, p
}

// checkDecoded judges what was decoded. Where decoding itself found a problem the value is missing, and what follows
// from that is not told again.
func (c *Config) checkDecoded(d *decoder) {
	decoded := d.problems
	d.problems = nil
	c.check(d)
	judged := d.problems
	d.problems = decoded
	for _, p := range judged {
		if !slices.ContainsFunc(decoded, func(q Problem) bool { return strings.HasPrefix(q.Path, p.Path) || strings.HasPrefix(p.Path, q.Path) }) {
			d.problems = append(d.problems, p)
		}
	}
}

// syntaxProblem finds the position that the YAML reader told, if it told one. Of the line no value is shown: nobody knows
// what it is.
func syntaxProblem(err error, text []string) Problem {
	if strings.TrimSpace(strings.Join(text, "")) == "" {
		return Problem{Line: 1, Column: 1, Path: "file", What: "is empty", Right: "version: 1 and what follows"}
	}
	one := Problem{Line: 1, Column: 1, Path: "file", What: err.Error(), Right: "one YAML document"}
	var many *yaml.LoadErrors
	var load *yaml.LoadError
	if errors.As(err, &many) && len(many.Errors) > 0 {
		load = many.Errors[0]
	} else {
		errors.As(err, &load)
	}
	if load != nil {
		one.What = load.Message
		one.Line, one.Column = max(load.Mark.Line, 1), max(load.Mark.Column, 1)
	}
	one.What = strings.TrimPrefix(one.What, "yaml: ")
	if one.Line <= len(text) {
		if key, _, found := strings.Cut(text[one.Line-1], ":"); found {
			one.hide = utf8.RuneCountInString(key) + 2
		}
	}
	return one
}

// at says a problem at the path, or at the nearest thing above it that stands in the file.
func (d *decoder) at(path, what, right string) {
	full := path
	for {
		if n, ok := d.where[path]; ok {
			d.say(n, full, what, right)
			return
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			d.problems = append(d.problems, Problem{Line: 1, Column: 1, Path: full, What: what, Right: right})
			return
		}
		path = path[:cut]
	}
}

func (c *Config) check(d *decoder) {
	switch {
	case c.Version > 1:
		d.at("version", fmt.Sprintf("format %d is of a newer vallum; this one knows 1", c.Version), "version: 1, or a newer vallum")
	case c.Version != 1:
		d.at("version", "the file does not say which format it has", "version: 1")
	}
	for i, l := range c.Listen {
		l.check(d, fmt.Sprintf("listen[%d]", i))
	}
	if c.Admin != "" && !strings.HasPrefix(c.Admin, "unix:/") {
		d.at("admin", "administration is reached by a UNIX socket only", "unix:/run/vallum/admin.sock")
	}
	if c.Probes != "" && c.Probes != "off" {
		if _, err := netip.ParseAddrPort(hostAsAddress(c.Probes)); err != nil {
			d.at("probes", fmt.Sprintf("%q is not HOST:PORT", c.Probes), "0.0.0.0:9090, or off")
		}
	}
	if len(c.Upstreams) == 0 {
		d.at("upstreams", "names no upstream, so nothing can be answered", "- {name: llama, url: \"http://127.0.0.1:8000\"}")
	}
	c.checkUpstreams(d)
	c.checkRoles(d)
	c.Isolate.check(d)
	oneOf(d, "upstream_errors", c.Errors, "replace", "pass")
	oneOf(d, "audit.checkpoints", c.Audit.Notes, "stdout")
	oneOf(d, "audit.sync", c.Audit.Sync, "interval", "always", "none")
	for i, o := range c.CORS.Origins {
		if u, err := url.Parse(o); err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || o == "*" {
			d.at(fmt.Sprintf("cors.origins[%d]", i), fmt.Sprintf("%q is not an origin", o), "https://chat.example.com")
		}
	}
}

func oneOf(d *decoder, path, value string, words ...string) {
	for _, w := range words {
		if value == "" || value == w {
			return
		}
	}
	d.at(path, fmt.Sprintf("%q is not known", value), strings.Join(words, " or "))
}

// check refuses a listener on which keys and prompts would cross a network in clear, unless that is written out.
func (l Listener) check(d *decoder, path string) {
	if l.Address == "" {
		d.at(path, "has no address", "address: 127.0.0.1:8080")
		return
	}
	for i, s := range l.TerminatedBy {
		if _, err := netip.ParsePrefix(s); err != nil {
			d.at(fmt.Sprintf("%s.terminated_by[%d]", path, i), fmt.Sprintf("%q is not a network", s), "10.0.0.0/8")
		}
	}
	if l.TLS != nil {
		if l.TLS.Certificate == "" || l.TLS.Key == "" {
			d.at(path+".tls", "needs both files", "{certificate: tls.crt, key: tls.key}")
		}
		return
	}
	if strings.HasPrefix(l.Address, "unix:") {
		return
	}
	ap, err := netip.ParseAddrPort(hostAsAddress(l.Address))
	if err != nil {
		d.at(path+".address", fmt.Sprintf("%q is not HOST:PORT with an IP address", l.Address), "127.0.0.1:8080, [::1]:8080, 0.0.0.0:8443 or unix:/path")
		return
	}
	if !ap.Addr().IsLoopback() && len(l.TerminatedBy) == 0 && !l.Insecure {
		d.at(path+".address", "plain HTTP on an address that is not loopback: keys and prompts would cross the network in clear",
			"tls: {certificate, key}; or terminated_by: [CIDR of the proxies that end TLS]; or insecure_plain_http: true")
	}
}

// hostAsAddress reads localhost and an empty host as the addresses that they mean.
func hostAsAddress(hostport string) string {
	if rest, ok := strings.CutPrefix(hostport, "localhost:"); ok {
		return "127.0.0.1:" + rest
	}
	if strings.HasPrefix(hostport, ":") {
		return "0.0.0.0" + hostport
	}
	return hostport
}

func (c *Config) checkUpstreams(d *decoder) {
	seen := map[string]bool{}
	for i, u := range c.Upstreams {
		path := fmt.Sprintf("upstreams[%d]", i)
		if u.Name == "" {
			d.at(path, "has no name", "name: llama")
		} else if seen[u.Name] {
			d.at(path+".name", fmt.Sprintf("another upstream is called %q", u.Name), "a name of its own")
		}
		seen[u.Name] = true
		if what, right := CheckURL(u.URL); what != "" {
			d.at(path+".url", what, right)
		}
		if u.KeyFile != "" && !u.Key.IsZero() {
			d.at(path+".key", "key_file is given too", "one of them")
		}
		if (u.Certificate == "") != (u.CertKey == "") {
			d.at(path, "a client certificate needs both files", "certificate: PATH and certificate_key: PATH")
		}
		if (u.CA != "" || u.Certificate != "") && (strings.HasPrefix(u.URL, "http:") || strings.HasPrefix(u.URL, "unix:")) {
			d.at(path+".ca", "ca and certificate are for https", "url: https://HOST:PORT, or leave them out")
		}
	}
}

// CheckURL says what is wrong with an upstream's URL, or "".
func CheckURL(s string) (what, right string) {
	right = "http://127.0.0.1:8000, https://HOST:PORT or unix:/run/vllm.sock"
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if !strings.HasPrefix(path, "/") {
			return fmt.Sprintf("%q is not the absolute path of a socket", s), right
		}
		return "", ""
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return fmt.Sprintf("%q is not the URL of a server", s), right
	case u.User != nil:
		return SecretInFile, "key_file: PATH beside the url"
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return "a path is refused: run vLLM without --root-path, which can switch its key check off", right
	}
	return "", ""
}

// checkRoles lets the policy judge the roles, with the models that the file names: what an upstream serves beyond it is
// not known here.
func (c *Config) checkRoles(d *decoder) {
	for name, r := range c.Roles {
		oneOf(d, "roles."+name+".unknown_fields", r.Unknown, "drop", "refuse")
	}
	names, rules := c.Rules(nil)
	_, problems := policy.Build(rules)
	for _, p := range problems {
		path := p.Where
		for i, name := range names {
			if rest, ok := strings.CutPrefix(path, fmt.Sprintf("roles[%d]", i)); ok && (rest == "" || rest[0] == '.') {
				path = "roles." + name + rest
				break
			}
		}
		d.at(path, p.What, p.Right)
	}
	c.checkModels(d)
}

// checkModels refuses model names that no upstream serves, where every upstream says what it serves.
func (c *Config) checkModels(d *decoder) {
	served := map[string]bool{}
	for _, u := range c.Upstreams {
		if len(u.Models) == 0 {
			return // it is asked when it is up
		}
		for _, m := range u.Models {
			served[m] = true
		}
	}
	var list []string
	for m := range served {
		list = append(list, m)
	}
	right := "served: " + strings.Join(sorted(list), ", ")
	for name, r := range c.Roles {
		for i, m := range r.Models {
			if m != "*" && !served[m] {
				d.at(fmt.Sprintf("roles.%s.models[%d]", name, i), fmt.Sprintf("no upstream serves %q", m), right)
			}
		}
	}
	for alias, target := range c.Aliases {
		if !served[target] {
			d.at("aliases."+alias, fmt.Sprintf("no upstream serves %q", target), right)
		}
	}
}
