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
	vallum   string
	before   string
	names    []string
	started  int
}

// setUp builds what has to be built, finds nginx, and starts the upstream.
func setUp(ctx context.Context, o options, dir string, progress io.Writer) (*stand, error) {
	s := &stand{dir: dir, names: o.targets, before: o.before}
	if o.wants(nginx) {
		var err error
		if s.nginx, err = findNginx(ctx, progress); err != nil {
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

// findNginx is Debian's nginx in the cache; it is installed there first when it is missing.
func findNginx(ctx context.Context, progress io.Writer) (string, error) {
	root, err := parts.Dir(parts.Debian)
	if errors.Is(err, parts.ErrMissing) {
		install := exec.CommandContext(ctx, "go", "run", "./install", "-only", parts.Debian.Name)
		install.Stdout, install.Stderr = progress, progress
		if err := install.Run(); err != nil {
			return "", fmt.Errorf("installing nginx: %w", err)
		}
		root, err = parts.Dir(parts.Debian)
	}
	return filepath.Join(root, "root", "usr", "sbin", "nginx"), err
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
	return nil, fmt.Errorf("no target %q; there are %s, %s, %s", name, nginx, stdlib, vallum)
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
	l, err := net.Listen("tcp", "127.0.0.1:0") // nginx cannot say which port it was given
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	l.Close()
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n"
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, address, s.upstream.address, user, refusal), 0o600); err != nil {
		return nil, err
	}
	cmd := s.nginxCommand("-c", conf, "-p", dir, "-e", filepath.Join(dir, "error.log"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	p, err := spawn(nginx, cmd, func(string) {})
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(readyDeadline); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return &target{name: nginx, address: address, key: "sk-any", refuse: "/refuse", process: p}, nil
		}
		select {
		case <-p.exited:
			return nil, fmt.Errorf("nginx ended before it listened: %s", stderr.Bytes())
		default:
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			p.stop()
			return nil, errors.New("nginx does not listen")
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
