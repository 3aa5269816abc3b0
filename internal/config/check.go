package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/identity"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/vllm"
)

func (c *Config) check(d *decoder) {
	switch {
	case c.Version > 1:
		d.at("version", fmt.Sprintf("format %d is of a newer vallum; this one knows 1", c.Version), "version: 1, or a newer vallum")
	case c.Version != 1:
		d.at("version", "the file does not say which format it has", "version: 1")
	}
	c.checkListeners(d)
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
	c.checkBodies(d)
	c.Clients.check(d)
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
		at := fmt.Sprintf("%s.terminated_by[%d]", path, i)
		switch p, err := netip.ParsePrefix(s); {
		case err != nil:
			right := "10.0.0.0/8"
			if one, err := netip.ParseAddr(s); err == nil {
				right = netip.PrefixFrom(one, one.BitLen()).String()
			}
			d.at(at, fmt.Sprintf("%q is not a network", s), right)
		case p.Bits() == 0:
			d.at(at, fmt.Sprintf("%q is everybody, so nobody is named who ends TLS", s), "the networks of the proxies, such as 10.0.0.0/8")
		}
	}
	if l.TLS != nil {
		if l.TLS.Certificate == "" || l.TLS.Key == "" {
			d.at(path+".tls", "needs both files", "{certificate: tls.crt, key: tls.key}")
		}
	}
	if socket, ok := strings.CutPrefix(l.Address, "unix:"); ok {
		if !strings.HasPrefix(socket, "/") {
			d.at(path+".address", fmt.Sprintf("%q is not the absolute path of a socket", l.Address), "unix:/run/vallum/vallum.sock")
		}
		return
	}
	ap, err := netip.ParseAddrPort(hostAsAddress(l.Address))
	if err != nil {
		d.at(path+".address", fmt.Sprintf("%q is not HOST:PORT with an IP address", l.Address), "127.0.0.1:8080, [::1]:8080, 0.0.0.0:8443 or unix:/path")
		return
	}
	if l.TLS == nil && !ap.Addr().IsLoopback() && len(l.TerminatedBy) == 0 && !l.Insecure {
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
		switch {
		case u.Name == "":
			d.at(path, "has no name", "name: llama")
		case !identity.IsName(u.Name):
			d.at(path+".name", fmt.Sprintf("%q is not a name", u.Name), identity.NameWords)
		case seen[u.Name]:
			d.at(path+".name", fmt.Sprintf("another upstream is called %q", u.Name), "a name of its own")
		}
		seen[u.Name] = true
		if what, right := CheckURL(u.URL); what != "" {
			d.at(path+".url", what, right)
		}
		if what, right := checkRelease(u.Release); what != "" {
			d.at(path+".release", what, right)
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

// checkRelease says what is wrong with the release of an upstream, or "". Gates hang on it: it has one spelling.
func checkRelease(s string) (what, right string) {
	if s == "" {
		return "", ""
	}
	switch r, err := vllm.ParseRelease(s); {
	case err != nil:
		return fmt.Sprintf("%q is not a release of vLLM", s), "such as 0.32.0 or 0.33.0rc1"
	case r.String() != s:
		return fmt.Sprintf("%q is not how a release is written", s), r.String()
	}
	return "", ""
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
		if !identity.IsName(name) {
			d.at("roles."+name, fmt.Sprintf("no key can hold a role called %q", name), identity.NameWords)
		}
		if r.Limits.Burst > 0 && r.Limits.RequestsPerMinute == 0 {
			d.at("roles."+name+".limits.burst", "there are no requests_per_minute that it could be a burst of", "requests_per_minute: 600 beside it; for requests at the same time: concurrent")
		}
		c.checkSound(d, name, r)
	}
	for alias, target := range c.Aliases {
		if alias == "" || target == "" {
			d.at("aliases."+alias, "has no name on one side", "gpt-4o-mini: llama-3-8b")
		}
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

// checkSound refuses a budget of tokens in which no request of an operation fits that the role names.
func (c *Config) checkSound(d *decoder, name string, r Role) {
	longest, budget := c.Bodies.MaxAudio, int64(r.Limits.TokensPerMinute)
	length(&longest, maxAudio)
	least := int64(time.Duration(longest)/time.Second) * policy.SoundTokens
	for _, o := range r.Operations {
		if op, ok := vllm.ByID(o.ID); ok && op.Request == vllm.FormBody && 0 < budget && budget <= least {
			d.at("roles."+name+".limits.tokens_per_minute", fmt.Sprintf("%d is not more than what the sound of one request of %s reserves", budget, o.ID),
				fmt.Sprintf("more than %d, or bodies.max_audio and the servers' VLLM_MAX_AUDIO_DECODE_DURATION_S below %s", least, time.Duration(longest)))
			return
		}
	}
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
	if len(list) == 0 {
		return // no upstream is a problem of its own
	}
	for name, r := range c.Roles {
		for i, m := range r.Models {
			if m != "*" && !served[m] {
				whole := right
				if strings.Contains(m, "*") {
					whole += `; or "*" for all of them`
				}
				d.at(fmt.Sprintf("roles.%s.models[%d]", name, i), fmt.Sprintf("no upstream serves %q", m), whole)
			}
		}
	}
	for alias, target := range c.Aliases {
		if !served[target] {
			d.at("aliases."+alias, fmt.Sprintf("no upstream serves %q", target), right)
		}
	}
}

// checkListeners judges each listener, and what they are together.
func (c *Config) checkListeners(d *decoder) {
	taken := map[string]string{}
	take := func(path, address string) {
		if address == "" || address == "off" || strings.HasSuffix(address, ":0") {
			return
		}
		address = hostAsAddress(address)
		if first, twice := taken[address]; twice {
			d.at(path, fmt.Sprintf("%s listens on %s already", first, address), "an address of its own")
			return
		}
		taken[address] = path
	}
	for i, l := range c.Listen {
		path := fmt.Sprintf("listen[%d]", i)
		l.check(d, path)
		take(path+".address", l.Address)
	}
	take("probes", c.Probes)
	take("admin", c.Admin)
}

// check refuses bounds that nobody means. Whether the process may open so many files is known where it runs.
func (c Connections) check(d *decoder) {
	switch {
	case 0 < c.Max && c.Max < leastConnections:
		d.at("connections.max", fmt.Sprintf("%d connections are too few to serve anybody", c.Max), fmt.Sprintf("%d or more", leastConnections))
	case c.Max > mostConnections:
		d.at("connections.max", fmt.Sprintf("%d connections are more than one process can hold", c.Max), fmt.Sprintf("%d or less", mostConnections))
	case c.PerAddress > mostConnections || c.Max > 0 && c.PerAddress > c.Max:
		d.at("connections.per_address", fmt.Sprintf("%d of one address are more than all that there may be", c.PerAddress), "max or less; without this key a quarter of it")
	}
}

// checkBodies refuses caps that can never be reached, for the memory of all bodies is smaller.
func (c *Config) checkBodies(d *decoder) {
	b := c.Bodies
	most := b.MaxBuffered
	size(&most, maxBuffered)
	for _, limit := range []struct {
		key        string
		size, most Size
	}{{"max_json", b.MaxJSON, most}, {"max_form", b.MaxForm, most}, {"max_reply", b.MaxReply, most / 2}} {
		if limit.size > limit.most {
			d.at("bodies."+limit.key, fmt.Sprintf("%s finds no room: max_buffered is %s", limit.size, most), fmt.Sprintf("%s or less, or a larger max_buffered", limit.most))
		}
	}
}
