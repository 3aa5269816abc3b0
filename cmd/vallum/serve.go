package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/daemon"
	"github.com/vallum/vallum/internal/daemon/resolve"
	"github.com/vallum/vallum/internal/vllm/surface"
)

// serveFlags are what `vallum serve` takes instead of a file, or beside one.
type serveFlags struct {
	config, upstream, upstreamKey, upstreamCA, upstreamCert, upstreamCertKey string
	listen, probes, admin, state, tlsCert, tlsKey, logLevel                  string
	behind                                                                   []string
	insecure, logJSON                                                        bool
}

func newServe(s streams) *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "serve --upstream URL | --config FILE",
		Short: "Guards vLLM servers: the gateway",
		Long: "Without a configuration it is safe as it stands: it listens on 127.0.0.1:8080, makes a first key, finds the\n" +
			"upstream's models, grants inference on them and nothing else.\n\n" +
			"Ctrl-C and SIGTERM let running requests end first; a second one does not. SIGHUP reloads --config; without a file it\n" +
			"ends the gateway, so that it does not outlive its terminal (nohup does).",
		Example: "  vallum serve --upstream http://127.0.0.1:8000\n" +
			"  vallum serve --upstream unix:/run/vllm.sock --upstream-key-file vllm-key\n" +
			"  vallum serve --config vallum.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			load, err := f.loader(s.in)
			if err != nil {
				return err
			}
			log, err := f.logger(s.err)
			if err != nil {
				return err
			}
			ctx, stop := f.lifetime(c.Context())
			defer stop()
			err = daemon.Run(ctx, daemon.Options{
				Load: load, File: f.file(), State: f.state, Out: s.out, Screen: s.err, Terminal: isTerminal(s.err), Log: log,
			})
			if errors.Is(err, syscall.EADDRINUSE) && !strings.Contains(err.Error(), "--probes") { // which it names itself
				return fmt.Errorf("%w\nhint: --listen 127.0.0.1:0 takes a free port, and prints it", err)
			}
			return err
		},
	}
	c.Flags().StringVar(&f.config, "config", "", "configuration file (vallum.yaml)")
	c.Flags().StringVar(&f.upstream, "upstream", "", "the vLLM server: http://HOST:PORT, https://HOST:PORT or unix:/path")
	c.Flags().StringVar(&f.upstreamKey, "upstream-key-file", "", "file with vLLM's own key")
	c.Flags().StringVar(&f.upstreamCA, "upstream-ca", "", "PEM file of the authority of an https upstream")
	c.Flags().StringVar(&f.upstreamCert, "upstream-certificate", "", "PEM file of the client certificate for an https upstream")
	c.Flags().StringVar(&f.upstreamCertKey, "upstream-certificate-key", "", "PEM file of that certificate's private key")
	c.Flags().StringVar(&f.listen, "listen", "", "where clients connect (default 127.0.0.1:8080); port 0 takes a free one")
	c.Flags().StringVar(&f.probes, "probes", "", "where /livez, /readyz and /metrics are (default 127.0.0.1:8081); off for none")
	c.Flags().StringVar(&f.admin, "admin", "", "UNIX socket of the administration, as unix:/path")
	c.Flags().StringVar(&f.tlsCert, "tls-certificate", "", "PEM file of the listener's certificate")
	c.Flags().StringVar(&f.tlsKey, "tls-key", "", "PEM file of the listener's private key")
	c.Flags().StringSliceVar(&f.behind, "behind", nil, "networks (CIDR) of the proxies that end TLS; connections from elsewhere are refused")
	c.Flags().BoolVar(&f.insecure, "insecure-plain-http", false, "listen in plain HTTP beyond loopback: keys and prompts cross the network in clear")
	c.Flags().StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	c.Flags().BoolVar(&f.logJSON, "log-json", false, "log as JSON, a line each")
	stateFlag(c, &f.state)
	return c
}

// file is the configuration file that can be read again; "" when there is none.
func (f serveFlags) file() string {
	if f.config == "-" {
		return ""
	}
	return f.config
}

// lifetime ends also with the terminal, or the session, that the gateway was started in. Not where there is a file: then
// SIGHUP is how an operator asks for a reload.
func (f serveFlags) lifetime(ctx context.Context) (context.Context, context.CancelFunc) {
	if f.file() != "" {
		return ctx, func() {}
	}
	return untilHangup(ctx)
}

// loader gives the function that reads the configuration, now and at each reload.
func (f serveFlags) loader(in io.Reader) (func() (*config.Config, error), error) {
	switch {
	case f.config == "" && f.upstream == "":
		return nil, usagef("which vLLM should be guarded?\nhint: vallum serve --upstream http://127.0.0.1:8000, or --config vallum.yaml; vallum demo needs none")
	case f.config != "" && (f.upstream != "" || f.upstreamKey != "" || f.upstreamCA != "" || f.upstreamCert != "" || f.upstreamCertKey != "" ||
		f.tlsCert != "" || f.tlsKey != "" || len(f.behind) > 0 || f.insecure):
		return nil, usagef("--config names the upstreams and how to listen: leave the other flags out, but for --listen, --probes, --admin and --state")
	}
	if f.config == "" {
		conf, err := f.configuration()
		return func() (*config.Config, error) { return conf, err }, err
	}
	return func() (*config.Config, error) {
		conf, err := readWithFiles(f.config, in, resolve.Check)
		if err != nil {
			return nil, err
		}
		if f.listen != "" {
			if len(conf.Listen) != 1 {
				return nil, usagef("--listen stands for the one listener of a configuration; %s has %d", f.config, len(conf.Listen))
			}
			conf.Listen[0].Address = f.listen
		}
		f.over(conf)
		return conf, nil
	}, nil
}

// over writes the flags that may stand beside a file over what it says.
func (f serveFlags) over(conf *config.Config) {
	if f.probes != "" {
		conf.Probes = f.probes
	}
	if f.admin != "" {
		conf.Admin = f.admin
	}
}

// configuration is what the flags say, written as a file and read by the same parser: one judge of what is right.
func (f serveFlags) configuration() (*config.Config, error) {
	listener := config.Listener{Address: f.listen, TerminatedBy: f.behind, Insecure: f.insecure}
	if listener.Address == "" {
		listener.Address = "127.0.0.1:8080"
	}
	if f.tlsCert != "" || f.tlsKey != "" {
		listener.TLS = &config.TLS{Certificate: f.tlsCert, Key: f.tlsKey}
	}
	conf := &config.Config{Version: 1, Listen: []config.Listener{listener}, Probes: f.probes, Admin: f.admin, Upstreams: []config.Upstream{{
		Name: "vllm", URL: f.upstream, KeyFile: f.upstreamKey, CA: f.upstreamCA, Certificate: f.upstreamCert, CertKey: f.upstreamCertKey,
	}}}
	b, err := conf.Print()
	if err != nil {
		return nil, err
	}
	read, err := config.Parse("flags", b)
	var problems *config.Problems
	if errors.As(err, &problems) {
		return nil, flagProblems(problems)
	}
	return read, err
}

// flagProblems tells problems of flags without lines that the user never wrote.
func flagProblems(p *config.Problems) error {
	var b strings.Builder
	for _, one := range p.List {
		flag := one.Path
		switch {
		case one.What == config.SecretInFile:
			flag, one.What, one.Right = "--upstream", "a secret on a command line can be read by every user of the machine", "--upstream-key-file FILE"
		case strings.HasPrefix(flag, "upstreams[0].url"):
			flag = "--upstream"
		case strings.HasPrefix(flag, "upstreams[0].ca"):
			flag = "--upstream-ca"
		case strings.HasPrefix(flag, "upstreams[0]"):
			flag, one.Right = "--upstream-certificate, --upstream-certificate-key", strings.NewReplacer("certificate: PATH", "--upstream-certificate FILE", "certificate_key: PATH", "--upstream-certificate-key FILE").Replace(one.Right)
		case flag == "probes" || flag == "admin":
			flag = "--" + flag
		case strings.HasPrefix(flag, "listen[0].terminated_by"):
			flag = "--behind"
		case strings.HasPrefix(flag, "listen[0].tls"):
			flag, one.Right = "--tls-certificate, --tls-key", "--tls-certificate FILE --tls-key FILE"
		case strings.HasPrefix(flag, "listen[0]"):
			flag = "--listen"
			one.Right = strings.NewReplacer("tls: {certificate, key}", "--tls-certificate FILE --tls-key FILE", "terminated_by: [CIDR of the proxies that end TLS]", "--behind CIDR of the proxies that end TLS", "insecure_plain_http: true", "--insecure-plain-http").Replace(one.Right)
		}
		fmt.Fprintf(&b, "%s: %s\nhint: %s\n", flag, one.What, one.Right)
	}
	return usagef("%s", strings.TrimSpace(b.String()))
}

func (f serveFlags) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return nil, usagef("--log-level %q: debug, info, warn or error", f.logLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	if f.logJSON {
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return slog.New(slog.NewTextHandler(w, options)), nil
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

func newestRelease() string { return surface.Newest().Version }
