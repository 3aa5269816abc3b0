//go:build conformance

package conformance

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/realvallum"
	"github.com/vallum/vallum/conformance/report"
)

// The addresses of the proofs behind nginx, all of them loopback: nginx's own,
// from which it connects to what is behind it, and those of two clients.
const (
	proxyAddress  = "127.0.0.2"
	clientAddress = "127.0.0.3"
	otherAddress  = "127.0.0.4"
	claimed       = "203.0.113.9" // what a client says that it is (RFC 5737)
)

// nginxConf ends TLS as Debian's nginx does it with what it has by default,
// buffering of replies included, and appends the client's address to what the
// client says of itself.
const nginxConf = `%[1]sdaemon off;
master_process off;
pid %[2]s/nginx.pid;
error_log %[2]s/error.log warn;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/proxy; fastcgi_temp_path %[2]s/f; uwsgi_temp_path %[2]s/u; scgi_temp_path %[2]s/s;
  server {
    listen %[3]s ssl;
    ssl_certificate %[2]s/tls.crt;
    ssl_certificate_key %[2]s/tls.key;
    location / {
      proxy_pass %[4]s;
      proxy_bind %[5]s;
      proxy_http_version 1.1;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }
  }
}
`

// proxy is a real nginx that ends TLS on loopback.
type proxy struct {
	url   string
	trust *x509.CertPool
}

// startNginx puts nginx in front of an http URL. It ends with the proof.
func startNginx(p *report.Proof, dir, to string) *proxy {
	p.Helper()
	root, err := parts.Dir(parts.Debian)
	if err != nil {
		p.NotRun("%v", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.Fatal(err)
	}
	n := &proxy{trust: x509.NewCertPool()}
	n.trust.AddCert(certificate(p, dir))
	l, err := net.Listen("tcp", "127.0.0.1:0") // nginx cannot say which port it was given
	if err != nil {
		p.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n"
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, user, dir, address, to, proxyAddress), 0o600); err != nil {
		p.Fatal(err)
	}
	libraries, err := filepath.Glob(filepath.Join(root, "root", "usr", "lib", "*-linux-gnu"))
	if err != nil {
		p.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(filepath.Join(root, "root", "usr", "sbin", "nginx"), "-c", conf, "-p", dir, "-e", filepath.Join(dir, "error.log"))
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libraries, ":"))
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.NotRun("nginx: %v", err)
	}
	p.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			p.Error(err)
		}
		_ = cmd.Wait() // it was killed: its status says nothing
	})
	until(p, endWithin, "a listening nginx", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	n.url = "https://" + address
	return n
}

// certificate writes tls.crt and tls.key for 127.0.0.1, signed by themselves.
func certificate(p *report.Proof, dir string) *x509.Certificate {
	p.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nginx"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		p.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: der}, "tls.key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			p.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.Fatal(err)
	}
	return cert
}

// from is the proxy as a client at an address of its own reaches it.
func (n *proxy) from(address, key string) target {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	return target{base: n.url, key: key, client: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: n.trust},
	}}}
}

// claiming is a request whose sender says that it is somebody else.
func claiming(c call) call {
	c.header = map[string]string{"X-Forwarded-For": claimed, "X-Real-Ip": claimed, "Forwarded": "for=" + claimed}
	return c
}

// remotes is what the records say of where requests came from, by their ids;
// counted ones of strangers by their reason.
func (g *gate) remotes(p *report.Proof) map[string]string {
	p.Helper()
	records, err := realvallum.Records(g.State)
	if err != nil {
		p.Fatal(err)
	}
	out := map[string]string{}
	for _, r := range records {
		if id, found := r["id"].(string); found {
			out[id] = fmt.Sprint(r["remote"])
		}
	}
	return out
}

// behindNginx starts a gateway that believes nginx at its address only.
func behindNginx(p *report.Proof, s *stand) (*gate, *proxy) {
	p.Helper()
	s.needGate(p)
	s.faults++
	name := fmt.Sprintf("nginx-%d", s.faults)
	g, err := fleet.startGate(s, name, "listen: [{address: \"127.0.0.1:0\", terminated_by: ["+proxyAddress+"/32]}]\n")
	if err != nil {
		p.NotRun("%v", err)
	}
	p.Cleanup(g.Stop)
	return g, startNginx(p, filepath.Join(s.dir, name, "proxy"), g.direct)
}

// addressIsBelieved: whoever can connect can say where a request comes from.
// The gateway believes its named proxies only, and only the last they said.
var addressIsBelieved = proof{"behind nginx that ends TLS: a client's address is nginx's word, and nobody connects past nginx", func(p *report.Proof, s *stand) {
	g, n := behindNginx(p, s)
	anna := n.from(clientAddress, g.keys["anna"])
	for name, c := range map[string]call{"a request": about(s.vllm.Served), "one that says it is another's": claiming(about(s.vllm.Served))} {
		got := anna.do(p, c)
		if err := ok(`"choices"`)(got); err != nil {
			p.Errorf("%s through nginx: %v", name, err)
			continue
		}
		id := got.header.Get("X-Request-Id")
		if _, err := g.ended(id); err != nil {
			p.Error(err)
		}
		if remote := g.remotes(p)[id]; remote != clientAddress {
			p.Errorf("%s through nginx: the record says that it came from %q, want %s", name, remote, clientAddress)
		}
	}
	before := s.arrived(p, "/v1/chat/completions")
	past := target{base: g.direct, key: g.keys["anna"], client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	for name, c := range map[string]call{"a request": about(s.vllm.Served), "one that names the proxy": func() call {
		c := claiming(about(s.vllm.Served))
		c.header["X-Forwarded-For"] = proxyAddress
		return c
	}()} {
		if err := refused("untrusted_proxy")(past.do(p, c)); err != nil {
			p.Errorf("%s past nginx, with a good key: %v", name, err)
		}
	}
	if n := s.arrived(p, "/v1/chat/completions") - before; n != 0 {
		p.Errorf("%d request(s) past nginx arrived at vLLM", n)
	}
	// And a gateway that names no proxy believes nobody.
	got := s.as("anna").do(p, claiming(about(s.vllm.Served)))
	if _, err := s.gate.ended(got.header.Get("X-Request-Id")); err != nil {
		p.Error(err)
	}
	if remote := s.gate.remotes(p)[got.header.Get("X-Request-Id")]; remote != "127.0.0.1" {
		p.Errorf("without a proxy: the record says that it came from %q", remote)
	}
}}

// wrongKeysAreCounted: thirty wrong keys from one address make it wait, and not
// its neighbour behind the same nginx.
var wrongKeysAreCounted = proof{"behind nginx that ends TLS: who guesses keys waits, whatever address they claim; a neighbour behind the same nginx does not", func(p *report.Proof, s *stand) {
	g, n := behindNginx(p, s)
	guess := func(i int) call {
		c := claiming(get("/v1/models"))
		c.header["X-Forwarded-For"] = fmt.Sprintf("203.0.113.%d", i%250)
		return c
	}
	told := map[string]int{}
	for i := range 40 {
		told[n.from(clientAddress, "sk-guess-"+fmt.Sprint(i)).do(p, guess(i)).header.Get("X-Vallum-Reason")]++
	}
	if told["no_credential"] == 0 || told["too_many_failures"] == 0 || len(told) != 2 {
		p.Errorf("forty wrong keys were answered %v", told)
	}
	if err := refused("no_credential")(n.from(otherAddress, "sk-wrong").do(p, get("/v1/models"))); err != nil {
		p.Errorf("a neighbour with a wrong key: %v", err)
	}
	if err := ok(s.vllm.Served)(n.from(clientAddress, g.keys["anna"]).do(p, get("/v1/models"))); err != nil {
		p.Errorf("a good key from the address that guessed: %v", err)
	}
}}

// arrivals counts the events of a stream and how many times something came.
func arrivals(p *report.Proof, to target, c call) (events, times int) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), callTimeout)
	defer cancel()
	resp, err := to.open(ctx, c)
	if err != nil {
		p.Fatal(err)
	}
	defer resp.Body.Close()
	var last time.Time
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !bytes.HasPrefix(lines.Bytes(), []byte("data: ")) {
			continue
		}
		events++
		if now := time.Now(); now.Sub(last) > time.Millisecond/2 {
			times, last = times+1, now
		}
	}
	if err := lines.Err(); err != nil {
		p.Fatal(err)
	}
	return events, times
}

// streamsFlush: nginx by default holds a reply back until it fills a buffer.
var streamsFlush = proof{"behind nginx that ends TLS, with its default buffering: events come as they are made, and a client that leaves stops the engine", func(p *report.Proof, s *stand) {
	c := post("/v1/chat/completions", steady(s.vllm.Served, "stream", true, "max_tokens", 200))
	alone := startNginx(p, filepath.Join(s.dir, "nginx-alone"), s.vllm.URL)
	events, times := arrivals(p, alone.from(clientAddress, s.vllm.Key), c)
	p.Logf("nginx before vLLM alone: %d events came in %d pieces", events, times)
	if events < 100 || times > events/4 {
		p.Fatal("nginx alone held nothing back: that nothing is held back behind it shows nothing")
	}
	g, n := behindNginx(p, s)
	events, times = arrivals(p, n.from(clientAddress, g.keys["anna"]), c)
	p.Logf("nginx before Vallum: %d events came in %d pieces", events, times)
	if events < 100 || times < events/2 { // vLLM joins tokens that wait
		p.Errorf("%d events came in %d pieces", events, times)
	}
	s.hangUp(p, n.from(clientAddress, g.keys["anna"]), steadyChat(s))
}}

// behindByFlag is the same without a configuration file.
var behindByFlag = proof{"serve --upstream --behind: only nginx may connect, and the client's address is its word", func(p *report.Proof, s *stand) {
	s.needGate(p)
	state := filepath.Join(s.dir, "behind")
	if err := os.MkdirAll(state, 0o700); err != nil {
		p.Fatal(err)
	}
	zero, err := realvallum.Start(p.Context(), realvallum.Options{
		Binary: s.gate.Binary, State: state, Log: filepath.Join(s.dir, "behind.log"), Args: []string{"--upstream", s.vllm.URL, "--behind", proxyAddress + "/32", "--probes", "off"},
	})
	if err != nil {
		p.Fatal(err)
	}
	defer zero.Stop()
	first, err := os.ReadFile(filepath.Join(state, "first-key"))
	if err != nil {
		p.Fatal(err)
	}
	key := strings.TrimSpace(string(first))
	g := &gate{Gateway: zero, keys: map[string]string{"first": key}}
	n := startNginx(p, filepath.Join(s.dir, "behind-proxy"), zero.URL)
	got := n.from(clientAddress, key).do(p, claiming(about(s.vllm.Served)))
	if err := ok(`"choices"`)(got); err != nil {
		p.Fatal(err)
	}
	if _, err := g.ended(got.header.Get("X-Request-Id")); err != nil {
		p.Error(err)
	}
	if remote := g.remotes(p)[got.header.Get("X-Request-Id")]; remote != clientAddress {
		p.Errorf("the record says that it came from %q", remote)
	}
	if err := refused("untrusted_proxy")(g.as("first").do(p, get("/v1/models"))); err != nil {
		p.Errorf("past nginx: %v", err)
	}
}}
