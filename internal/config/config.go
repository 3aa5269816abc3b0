// Package config is vallum.yaml as a documented type, and reading it: all problems at once, each where it stands.
// It refuses unknown keys, secrets written out, and everything that is not said; it reads no file and no environment.
package config

import (
	"net/netip"
	"time"
)

// Config is vallum.yaml. Every field's zero value is the closed one: absent never means open.
type Config struct {
	Version   int               `yaml:"version" jsonschema_description:"The format of this file: 1."`
	Listen    []Listener        `yaml:"listen" jsonschema_description:"Where clients connect. Default: 127.0.0.1:8080 in plain HTTP."`
	Probes    string            `yaml:"probes" jsonschema_description:"Address of /livez, /readyz and /metrics, and nothing else. Default: 127.0.0.1:8081; \"off\" for none."`
	Admin     string            `yaml:"admin" jsonschema_description:"UNIX socket of the administration, as unix:/run/vallum/admin.sock. Default: none."`
	State     string            `yaml:"state" jsonschema_description:"Directory (0700) of the key store, the audit log and spooled uploads. Default: /var/lib/vallum for root, the XDG state folder otherwise."`
	Clients   Connections       `yaml:"connections" jsonschema_description:"How many connections clients may have open. A reload may change it; connections that are open stay."`
	Upstreams []Upstream        `yaml:"upstreams" jsonschema_description:"The vLLM servers."`
	Aliases   map[string]string `yaml:"aliases" jsonschema_description:"Names that clients hard-code, and the served model that each means. The reply says the name that was asked."`
	Roles     map[string]Role   `yaml:"roles" jsonschema_description:"What keys may do, by role. Built in: inference, monitor, operator."`
	KeysFile  string            `yaml:"keys_file" jsonschema_description:"File of keys (name, role, SHA-256), in addition to the key store: one a line, as NAME ROLE[,ROLE] HASH, then tenant=T and expires=2027-01-31 if wanted; # begins a comment. HASH is what printf %s \"$KEY\" | sha256sum prints. Read again when it changes: within a second where the file system tells of that, within 5 s otherwise, at once on SIGHUP."`
	Bodies    Bodies            `yaml:"bodies" jsonschema_description:"Caps on request bodies."`
	Audit     Audit             `yaml:"audit" jsonschema_description:"The record of every request."`
	CORS      CORS              `yaml:"cors" jsonschema_description:"Browsers that may call. Default: none."`
	Timeouts  Timeouts          `yaml:"timeouts" jsonschema_description:"Deadlines. There is no total deadline on a stream that moves."`
	Errors    string            `yaml:"upstream_errors" jsonschema_description:"replace (default): callers get Vallum's sentence for an upstream's error; pass: they get the upstream's own text, which may hold paths and parts of the input."`
	Cached    bool              `yaml:"show_cached_tokens" jsonschema_description:"Show callers how many of their prompt tokens came from the prefix cache. Default: false."`
	Isolate   *Isolate          `yaml:"isolate" jsonschema_description:"The part of vallum isolate: the network between vLLM nodes. Default: none."`
}

// Listener is one address that clients connect to.
type Listener struct {
	Address      string   `yaml:"address" jsonschema_description:"HOST:PORT, or unix:/path of a UNIX socket. Port 0 takes a free one and prints it."`
	TLS          *TLS     `yaml:"tls" jsonschema_description:"Certificate and key; reloaded when the files change."`
	TerminatedBy []string `yaml:"terminated_by" jsonschema_description:"Networks (CIDR) of the proxies that end TLS: connections from elsewhere are refused, and X-Forwarded-For is believed from there only. Name the proxies alone: who calls from these networks can name any address. A network of everybody, as 0.0.0.0/0, is refused."`
	Insecure     bool     `yaml:"insecure_plain_http" jsonschema_description:"Listen in plain HTTP on an address that is not loopback: keys and prompts cross the network in clear."`
}

// Connections bounds the connections of clients.
type Connections struct {
	Max        Count `yaml:"max" jsonschema_description:"Over all listeners; one of HTTP/2 counts as one, whatever runs on it. When all are open, those between requests are closed, the longest idle first; if there is none, a new connection is closed as it comes. Probes and the administration have 48 of their own. Default: half of the files that the process may open (LimitNOFILE, ulimit -n) after 112 for other things, 16384 at most: a running request needs a connection to vLLM as well. More than that half is refused at the start."`
	PerAddress Count `yaml:"per_address" jsonschema_description:"Of one IPv4 address, or one /64 of IPv6, in the same way. Proxies of terminated_by and clients by UNIX socket stand for many, and have no bound of their own; a proxy that is not named there has. Default: a quarter of max."`
}

// TLS names the files of a listener's certificate.
type TLS struct {
	Certificate string `yaml:"certificate" jsonschema_description:"PEM file of the certificate chain."`
	Key         string `yaml:"key" jsonschema_description:"PEM file of the private key."`
}

// Upstream is one vLLM server.
type Upstream struct {
	Name        string   `yaml:"name" jsonschema_description:"What records and metrics call it."`
	URL         string   `yaml:"url" jsonschema_description:"http://HOST:PORT, https://HOST:PORT or unix:/path, without a path: vLLM is run without --root-path."`
	KeyFile     string   `yaml:"key_file" jsonschema_description:"File that holds vLLM's own key (--api-key). No client ever sees it. Read again when it changes."`
	Key         Secret   `yaml:"key" jsonschema_description:"The same from ${env:NAME} or ${credential:NAME} (systemd). Never the key itself."`
	Models      []string `yaml:"models" jsonschema_description:"The models it serves. Default: what its /v1/models lists."`
	Release     string   `yaml:"release" jsonschema_description:"The release of vLLM that it runs, such as 0.32.0, for a server that does not tell it (GET /version). What the server tells wins over it, with a warning. Fields that harm some releases and cache_salt go by it. Default: not known, which counts as harmed, and as without cache_salt."`
	CA          string   `yaml:"ca" jsonschema_description:"PEM file of the authorities that may have signed its certificate. Default: the system's. Read again when it changes."`
	Certificate string   `yaml:"certificate" jsonschema_description:"PEM file of the client certificate that it asks for. Read again when it changes."`
	CertKey     string   `yaml:"certificate_key" jsonschema_description:"PEM file of the client certificate's private key."`
	SharedCache bool     `yaml:"insecure_shared_prefix_cache" jsonschema_description:"Serve several tenants although the release has no cache_salt: their prompts can be told from timing."`
}

// Role grants operations on models.
type Role struct {
	Operations []Operation `yaml:"operations" jsonschema_description:"Operation ids, or groups as \"@inference\". See docs/operations.md."`
	Models     []string    `yaml:"models" jsonschema_description:"Model names, or \"*\" for all that the upstreams serve."`
	Limits     Limits      `yaml:"limits" jsonschema_description:"What each key of the role may use; counted per key."`
	MaxOutput  Count       `yaml:"max_output_tokens" jsonschema_description:"Cap on the output tokens of one answer: written into requests that have none, and larger ones are refused."`
	Unknown    string      `yaml:"unknown_fields" jsonschema_description:"drop (default): fields that no table names do not reach vLLM and are named in the record; refuse: they are refused."`
}

// Operation is an id or a group; for the most dangerous ones a mapping with an acknowledgement.
type Operation struct {
	ID          string `yaml:"id" jsonschema_description:"The operation's id."`
	Acknowledge string `yaml:"acknowledge" jsonschema_description:"The id again, for operations of the groups development and profiler."`
}

// Limits are what one key may use; absent is no limit of its kind.
type Limits struct {
	RequestsPerMinute Count `yaml:"requests_per_minute" jsonschema_description:"Requests per minute, refilled evenly."`
	Burst             Count `yaml:"burst" jsonschema_description:"Requests at once. Default: requests_per_minute."`
	Concurrent        Count `yaml:"concurrent" jsonschema_description:"Requests that run at the same time."`
	TokensPerMinute   Count `yaml:"tokens_per_minute" jsonschema_description:"Prompt and completion tokens per minute: reserved before, settled by the real usage. Audio reserves 60,000 and its text (bodies.max_audio), and costs 100 for each second that vLLM says it heard; a translation as json or text, of which vLLM says nothing, costs what was reserved."`
}

// Bodies caps request bodies.
type Bodies struct {
	MaxJSON     Size     `yaml:"max_json" jsonschema_description:"Largest JSON body. Default: 8MiB."`
	MaxForm     Size     `yaml:"max_form" jsonschema_description:"Largest form (audio). Default: 32MiB."`
	MaxBuffered Size     `yaml:"max_buffered" jsonschema_description:"Memory for bodies, over all running requests: what callers send, until it is up, and replies that are not streams, twice their size while they are rewritten; of a stream, events above 64 KiB. A request that finds no room is refused as busy. Default: 256MiB."`
	MaxReply    Size     `yaml:"max_reply" jsonschema_description:"Largest reply that is not a stream; half of max_buffered at most. Default: 64MiB."`
	MaxAudio    Duration `yaml:"max_audio" jsonschema_description:"Longest sound that the model servers hear: their VLLM_MAX_AUDIO_DECODE_DURATION_S. No file tells its length so that it cannot lie, so a request with sound reserves 100 tokens for each second of this. Default: 10m, which is vLLM's. Lower it here and there for smaller budgets; raise it here where it was raised there."`
}

// Audit configures the record.
type Audit struct {
	Sync     string   `yaml:"sync" jsonschema_description:"When lines are forced to disk: interval (default, every second), always, none. A killed process loses nothing in any of them."`
	Retain   Duration `yaml:"retain" jsonschema_description:"How long whole segments are kept. Default: for ever."`
	Notes    string   `yaml:"checkpoints" jsonschema_description:"stdout: signed checkpoints go there too, one a second with traffic, so that somebody else can hold them. Default: to the audit folder only."`
	Segment  Size     `yaml:"max_segment" jsonschema_description:"Size at which a segment is sealed. Default: 64MiB."`
	Rotation Duration `yaml:"max_segment_age" jsonschema_description:"Age at which a segment is sealed. Default: 24h."`
}

// CORS lists the browser origins that may call.
type CORS struct {
	Origins []string `yaml:"origins" jsonschema_description:"Exact origins, such as https://chat.example.com. \"*\" is refused."`
}

// Timeouts are the deadlines of the data path.
type Timeouts struct {
	Header        Duration `yaml:"header" jsonschema_description:"For the request's headers. Default: 10s."`
	Body          Duration `yaml:"body" jsonschema_description:"For the request's body. Default: 60s."`
	Idle          Duration `yaml:"idle" jsonschema_description:"For a client connection between requests. Default: 90s."`
	Write         Duration `yaml:"write" jsonschema_description:"For one write to a client that does not read. Default: 30s."`
	Connect       Duration `yaml:"connect" jsonschema_description:"For connecting to an upstream. Default: 5s."`
	FirstByte     Duration `yaml:"first_byte" jsonschema_description:"For an upstream's first byte: queueing and prefill count. Default: 10m."`
	BetweenEvents Duration `yaml:"between_events" jsonschema_description:"Between two events of a stream. Default: 2m."`
	Drain         Duration `yaml:"drain" jsonschema_description:"For running requests after SIGTERM. Default: 30s."`
}

// Duration is a length of time, written as 90s, 15m, 24h or 90d. Zero is "not given".
type Duration time.Duration

// Count is a limit, written as 600 or 200_000. Zero is "not given": as a limit it is refused, for it would be none.
type Count int64

// Size is a number of bytes, written as 1000, 64KiB, 8MiB or 2GiB. Zero is "not given".
type Size int64

// Secret says where a secret is, never the secret: ${env:NAME} or ${credential:NAME}.
type Secret struct{ From, Name string }

// IsZero reports whether no secret is given.
func (s Secret) IsZero() bool { return s == Secret{} }

// String is the reference as it is written.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return "${" + s.From + ":" + s.Name + "}"
}

// ProxyNetworks are the networks of terminated_by. Parse has checked them.
func (l Listener) ProxyNetworks() []netip.Prefix {
	var nets []netip.Prefix
	for _, s := range l.TerminatedBy {
		if p, err := netip.ParsePrefix(s); err == nil {
			nets = append(nets, p.Masked())
		}
	}
	return nets
}
