package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vallum/vallum/conformance/parts"
)

// The targets, in the order of the table.
const (
	direct = "direct" // no proxy: what latencies are compared with
	nginx  = "nginx"
	envoy  = "envoy"
	stdlib = "stdlib"
	vallum = "vallum"
	before = "before" // another vallum binary, measured in the same rounds
)

const (
	maxBody = 8 << 20 // Vallum's default cap
	refusal = `{"error":{"message":"A valid API key is required.","type":"authentication_error","param":null,"code":"no_credential"}}`
)

// target is one proxy that runs, or the upstream itself.
type target struct {
	name    string
	address string
	key     string // sent as Authorization: Bearer
	refuse  string // the path that refuses who has no key
	*process
}

// stand is what is needed to start targets, as often as wanted.
type stand struct {
	dir      string
	upstream *target
	nginx    string // the binary
	envoy    string
	vallum   string
	before   string
	names    []string
	started  int
}

// setUp builds what has to be built, finds nginx, and starts the upstream.
func setUp(ctx context.Context, o options, dir string, progress io.Writer) (*stand, error) {
	s := &stand{dir: dir, names: o.targets, before: o.before}
	var err error
	if o.wants(nginx) {
		if s.nginx, err = find(ctx, progress, parts.Debian, "root/usr/sbin/nginx"); err != nil {
			return nil, err
		}
	}
	if o.wants(envoy) {
		if s.envoy, err = find(ctx, progress, parts.Envoy, "venv/lib/python3*/site-packages/envoy/_bin/envoy"); err != nil {
			return nil, err
		}
	}
	if o.wants(vallum) {
		if s.vallum = o.binary; s.vallum == "" {
			s.vallum = filepath.Join(dir, "vallum")
			if err := build(ctx, s.vallum, o.symbols); err != nil {
				return nil, err
			}
		}
	}
	cmd, err := self("upstream")
	if err != nil {
		return nil, err
	}
	p, address, err := spawnReady(ctx, "upstream", cmd)
	if err != nil {
		return nil, err
	}
	s.upstream = &target{name: direct, address: address, key: "sk-none", process: p}
	return s, nil
}

// find is a file of a part in the cache; the part is installed first when it is missing.
func find(ctx context.Context, progress io.Writer, part parts.Part, pattern string) (string, error) {
	root, err := parts.Dir(part)
	if errors.Is(err, parts.ErrMissing) {
		install := exec.CommandContext(ctx, "go", "run", "./install", "-only", part.Name)
		install.Stdout, install.Stderr = progress, progress
		if err := install.Run(); err != nil {
			return "", fmt.Errorf("installing %s: %w", part.Name, err)
		}
		root, err = parts.Dir(part)
	}
	if err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pattern)))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%s %s has no %s", part.Name, part.Version, pattern)
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}

// self is this program, to be run as one of the small servers.
func self(args ...string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return exec.Command(exe, args...), nil
}

// build makes the binary with the flags of the Makefile's build target; with symbols, for perf, without stripping it.
func build(ctx context.Context, to string, symbols bool) error {
	repo, err := filepath.Abs("..")
	if err != nil {
		return err
	}
	linker := "-s -w"
	if symbols {
		linker = ""
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", linker, "-o", to, "./cmd/vallum")
	cmd.Dir = repo
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building vallum: %w\n%s", err, out)
	}
	return nil
}

// start starts a proxy anew. The caller stops it.
func (s *stand) start(ctx context.Context, name string) (*target, error) {
	s.started++
	dir := filepath.Join(s.dir, fmt.Sprintf("%s-%d", name, s.started))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	switch name {
	case nginx:
		return s.startNginx(ctx, dir)
	case envoy:
		return s.startEnvoy(ctx, dir)
	case stdlib:
		cmd, err := self("stdlib", "http://"+s.upstream.address)
		if err != nil {
			return nil, err
		}
		p, address, err := spawnReady(ctx, name, cmd)
		return &target{name: name, address: address, key: "sk-any", refuse: chatPath, process: p}, err
	case vallum:
		return s.startVallum(ctx, name, s.vallum, dir)
	case before:
		return s.startVallum(ctx, name, s.before, dir)
	}
	return nil, fmt.Errorf("no target %q; there are %s, %s, %s, %s", name, nginx, envoy, stdlib, vallum)
}

// nginxConf is bare proxying as an operator of vLLM sets it up: pooled connections, streams flushed at once, nothing
// logged, bodies in memory. The number of workers is Debian's default.
const nginxConf = `%[4]sworker_processes auto;
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log crit;
events { worker_connections 4096; }
http {
  access_log off;
  default_type application/json;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  keepalive_requests 100000000;
  client_max_body_size 8m;
  client_body_buffer_size 256k;
  upstream vllm { server %[3]s; keepalive 1024; keepalive_requests 100000000; }
  server {
    listen %[2]s;
    location / {
      proxy_pass http://vllm;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 300s;
    }
    location = /refuse { return 401 '%[5]s'; }
  }
}
`

func (s *stand) startNginx(ctx context.Context, dir string) (*target, error) {
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n"
	}
	return s.startOnPort(ctx, nginx, dir, func(conf, port string) (string, *exec.Cmd) {
		return fmt.Sprintf(nginxConf, dir, "127.0.0.1:"+port, s.upstream.address, user, refusal),
			s.nginxCommand("-c", conf, "-p", dir, "-e", filepath.Join(dir, "error.log"))
	})
}

// envoyConf is bare proxying in Envoy: pooled connections, no timeout on a stream, nothing logged. The number of workers
// is its default.
const envoyConf = `static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %[1]s}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {match: {path: /refuse}, direct_response: {status: 401, body: {inline_string: '%[4]s'}}}
              - {match: {prefix: /}, route: {cluster: vllm, timeout: 0s}}
  clusters:
  - name: vllm
    connect_timeout: 5s
    load_assignment:
      cluster_name: vllm
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %[2]s, port_value: %[3]s}}}}]}]
`

func (s *stand) startEnvoy(ctx context.Context, dir string) (*target, error) {
	host, port, err := net.SplitHostPort(s.upstream.address)
	if err != nil {
		return nil, err
	}
	return s.startOnPort(ctx, envoy, dir, func(conf, listen string) (string, *exec.Cmd) {
		return fmt.Sprintf(envoyConf, listen, host, port, refusal), exec.Command(s.envoy, "-c", conf, "--disable-hot-restart", "--log-level", "error")
	})
}

// startOnPort starts a proxy that cannot say which port it was given: a free one is written into its configuration.
func (s *stand) startOnPort(ctx context.Context, name, dir string, render func(conf, port string) (string, *exec.Cmd)) (*target, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	l.Close()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, name+".yaml") // the ending tells Envoy the syntax; nginx takes any
	text, cmd := render(conf, port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	p, err := spawn(name, cmd, func(string) {})
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(readyDeadline); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return &target{name: name, address: address, key: "sk-any", refuse: "/refuse", process: p}, nil
		}
		select {
		case <-p.exited:
			return nil, fmt.Errorf("%s ended before it listened: %s", name, stderr.Bytes())
		default:
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			p.stop()
			return nil, fmt.Errorf("%s does not listen", name)
		}
	}
}

func (s *stand) nginxCommand(args ...string) *exec.Cmd {
	cmd := exec.Command(s.nginx, args...)
	root := filepath.Dir(filepath.Dir(filepath.Dir(s.nginx)))
	libraries, _ := filepath.Glob(filepath.Join(root, "usr", "lib", "*-linux-gnu"))
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libraries, ":"))
	return cmd
}

// vallumConf switches on what can be: every kind of limit is counted, none is reached.
const vallumConf = `version: 1
listen: [{address: "127.0.0.1:0"}]
probes: "off"
state: %[1]s
upstreams: [{name: fake, url: "http://%[2]s"}]
roles:
  bench:
    operations: ["@inference"]
    models: ["*"]
    limits: {requests_per_minute: 100000000, concurrent: 100000, tokens_per_minute: 1000000000000}
`

func (s *stand) startVallum(ctx context.Context, name, binary, dir string) (*target, error) {
	// A folder of its own: the daemon watches the configuration's.
	state, conf := filepath.Join(dir, "state"), filepath.Join(dir, "conf", "vallum.yaml")
	if err := os.Mkdir(filepath.Dir(conf), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(conf, fmt.Appendf(nil, vallumConf, state, s.upstream.address), 0o600); err != nil {
		return nil, err
	}
	create := exec.CommandContext(ctx, binary, "keys", "create", "--name", "bench", "--role", "bench", "--state", state)
	create.Stderr = &bytes.Buffer{}
	key, err := create.Output()
	if err != nil {
		return nil, fmt.Errorf("creating a key: %w: %s", err, create.Stderr)
	}
	cmd := exec.Command(binary, "serve", "--config", conf, "--state", state, "--listen", "127.0.0.1:0", "--probes", "off")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stderr = log
	p, address, err := spawnReady(ctx, name, cmd)
	if err != nil {
		said, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%w\n%s", err, said)
	}
	return &target{name: name, address: address, key: strings.TrimSpace(string(key)), refuse: chatPath, process: p}, nil
}
