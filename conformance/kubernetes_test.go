//go:build conformance

package conformance

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vallum/vallum/conformance/nodes"
	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/report"
)

const (
	kubePart  = "kube-apiserver"
	kubeToken = "conformance"
	policies  = "/apis/networking.k8s.io/v1/namespaces/vllm/networkpolicies"
)

// TestKubernetes starts a control plane in a network namespace: there are no nodes, nothing runs in it.
func TestKubernetes(t *testing.T) {
	proveAll(t, kubePart, parts.KubeVersion, proofsKube(&cluster{t: t}))
}

func proofsKube(c *cluster) []proof {
	return []proof{
		{"the printed NetworkPolicies are taken, every field is known, and say who reaches whom", c.policiesAreTaken},
		{"a name that is no label is refused by vallum and by kube-apiserver alike; one that YAML reads otherwise is taken as it stands", c.namesAreTaken},
		{"the environment printed for a pod is taken, every field is known", c.podIsTaken},
	}
}

// cluster is a kube-apiserver, started when a proof first asks for it.
type cluster struct {
	t      *testing.T
	once   sync.Once
	err    error
	lab    *nodes.Lab
	client *http.Client
	url    string
}

// need starts the cluster, or ends a proof that has none.
func (c *cluster) need(p *report.Proof) {
	p.Helper()
	c.once.Do(func() { c.err = c.start() })
	if c.err != nil {
		p.NotRun("%v", c.err)
	}
}

// start starts etcd and kube-apiserver on the lab's outsider. They end with the test.
func (c *cluster) start() error {
	debian, err := parts.Dir(parts.Debian)
	if err != nil {
		return err
	}
	kube, err := parts.Dir(parts.Kube)
	if err != nil {
		return err
	}
	if c.lab, err = makeLab(c.t, kubePart); err != nil {
		return err
	}
	c.t.Cleanup(c.lab.Close)
	n := c.lab.Node("x")
	accounts, tokens := filepath.Join(n.Dir, "accounts.key"), filepath.Join(n.Dir, "tokens")
	key, err := privateKey()
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(accounts, key, 0o600), os.WriteFile(tokens, []byte(kubeToken+",admin,1,system:masters\n"), 0o600)); err != nil {
		return err
	}
	const etcd = "http://127.0.0.1:2379"
	_, err = c.launch(n, filepath.Join(debian, "root", "usr", "bin", "etcd"), "--data-dir", filepath.Join(n.Dir, "etcd"),
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", "http://127.0.0.1:2380")
	if err != nil {
		return err
	}
	certificates := filepath.Join(n.Dir, "certificates")
	server, err := c.launch(n, filepath.Join(kube, "kube-apiserver"), "--etcd-servers", etcd,
		"--advertise-address", n.Under.String(), "--secure-port", "6443", "--cert-dir", certificates,
		"--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.0.0.0/24",
		"--disable-admission-plugins", "ServiceAccount", "--token-auth-file", tokens,
		"--service-account-key-file", accounts, "--service-account-signing-key-file", accounts, "--service-account-issuer", "https://kubernetes.default.svc")
	if err != nil {
		return err
	}
	c.client, c.url = n.Client(soon), "https://"+netip.AddrPortFrom(n.Under, 6443).String()
	if err := c.ready(server, filepath.Join(certificates, "apiserver.crt")); err != nil {
		return fmt.Errorf("%w:\n%s", err, server.Said())
	}
	status, said, err := c.ask(http.MethodPost, "/api/v1/namespaces", "application/json", []byte(`{"metadata": {"name": "vllm"}}`))
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("making a namespace: %d %s", status, said)
	}
	return err
}

func (c *cluster) launch(n *nodes.Node, args ...string) (*nodes.Task, error) {
	t, err := n.Launch(filepath.Base(args[0]), exec.Command(args[0], args[1:]...))
	if err == nil {
		c.t.Cleanup(t.Stop)
	}
	return t, err
}

// ready waits until the server has made its certificate, which is who we trust then, and says that it is ready.
func (c *cluster) ready(server *nodes.Task, certificate string) error {
	trust := x509.NewCertPool()
	c.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: trust}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for trusted, deadline := false, time.Now().Add(slowly); time.Now().Before(deadline); {
		select {
		case <-server.Exited():
			return errors.New("kube-apiserver ended")
		case <-tick.C:
		}
		if !trusted {
			b, err := os.ReadFile(certificate)
			trusted = err == nil && trust.AppendCertsFromPEM(b)
			continue
		}
		if status, _, err := c.ask(http.MethodGet, "/readyz", "", nil); err == nil && status == http.StatusOK {
			return nil
		}
	}
	return fmt.Errorf("kube-apiserver is not ready within %s", slowly)
}

func privateKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func (c *cluster) ask(method, path, kind string, body []byte) (status int, said string, err error) {
	r, err := http.NewRequest(method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Authorization", "Bearer "+kubeToken)
	r.Header.Set("Content-Type", kind)
	answer, err := c.client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(b), err
}

// try asks whether an object would be taken, with every field known, and keeps nothing.
func (c *cluster) try(p *report.Proof, path, yaml string) (status int, said string) {
	p.Helper()
	status, said, err := c.ask(http.MethodPost, path+"?fieldValidation=Strict&dryRun=All", "application/yaml", []byte(yaml))
	if err != nil {
		p.Fatal(err)
	}
	return status, said
}

// printedPolicy is what `vallum isolate policy kubernetes` prints.
func printedPolicy(p *report.Proof, args ...string) (printed string, err error) {
	p.Helper()
	binary, err := fleet.build()
	if err != nil {
		p.NotRun("%v", err)
	}
	var errs bytes.Buffer
	cmd := exec.CommandContext(p.Context(), binary, append([]string{"isolate", "policy", "kubernetes"}, args...)...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, &errs)
	}
	return string(out), nil
}

// Who reaches whom, as the API says it back.
type (
	labels   map[string]string
	selector struct {
		Labels labels `json:"matchLabels"`
	}
	peer struct {
		Pods       *selector `json:"podSelector"`
		Namespaces *selector `json:"namespaceSelector"`
	}
	port struct {
		Protocol string
		Port     int
	}
	rule struct {
		From, To []peer
		Ports    []port
	}
	networkPolicy struct {
		Spec struct {
			Pods            selector `json:"podSelector"`
			Ingress, Egress []rule
			Types           []string `json:"policyTypes"`
		}
	}
)

func (c *cluster) policiesAreTaken(p *report.Proof, _ *stand) {
	c.need(p)
	printed, err := printedPolicy(p, "--app", "engine", "--gateway-namespace", "edge", "--api-port", "8100")
	if err != nil {
		p.Fatal(err)
	}
	// A misspelt line is one that nobody enforces: the server has to be one that says so.
	if status, said := c.try(p, policies, strings.ReplaceAll(printed, "ingress:", "ingres:")); status != http.StatusBadRequest || !strings.Contains(said, `unknown field \"spec.ingres\"`) {
		p.Fatalf("the server takes a field that it does not know: %d %s", status, said)
	}
	status, said := c.try(p, policies, printed)
	if status != http.StatusCreated {
		p.Fatalf("the printed policy: %d %s", status, said)
	}
	var got, want networkPolicy
	if err := json.Unmarshal([]byte(said), &got); err != nil {
		p.Fatal(err)
	}
	pods := func(app string) peer { return peer{Pods: &selector{labels{"app": app}}} }
	elsewhere := func(namespace, key, app string) peer {
		return peer{Pods: &selector{labels{key: app}}, Namespaces: &selector{labels{"kubernetes.io/metadata.name": namespace}}}
	}
	want.Spec.Pods, want.Spec.Types = selector{labels{"app": "engine"}}, []string{"Ingress", "Egress"}
	want.Spec.Ingress = []rule{
		{From: []peer{pods("engine")}},
		{From: []peer{elsewhere("edge", "app", "vallum")}, Ports: []port{{"TCP", 8100}}},
	}
	want.Spec.Egress = []rule{
		{To: []peer{pods("engine")}},
		{To: []peer{elsewhere("kube-system", "k8s-app", "kube-dns")}, Ports: []port{{"UDP", 53}, {"TCP", 53}}},
	}
	if !reflect.DeepEqual(got, want) {
		p.Errorf("the server reads\n%+v\nwhich is not\n%+v", got, want)
	}
}

func (c *cluster) namesAreTaken(p *report.Proof, _ *stand) {
	c.need(p)
	plain, err := printedPolicy(p)
	if err != nil {
		p.Fatal(err)
	}
	// What a name comes to that is not quoted.
	if status, said := c.try(p, policies, strings.ReplaceAll(plain, `{app: "vllm"}`, "{app: on}")); status != http.StatusBadRequest {
		p.Errorf("the server takes a truth for a label: %d %s", status, said)
	}
	for _, name := range []string{"on", "123", "null", "1e3", "vLLM_0.32"} {
		printed, err := printedPolicy(p, "--app", name)
		if err != nil {
			p.Errorf("vallum refuses the label %q: %v", name, err)
			continue
		}
		if status, said := c.try(p, policies, printed); status != http.StatusCreated || !strings.Contains(said, fmt.Sprintf("%q:%q", "app", name)) {
			p.Errorf("the label %q: %d %s", name, status, said)
		}
	}
	for _, name := range []string{"-vllm", "vllm-", "a b", "_a", strings.Repeat("a", 64), "é"} {
		if status, said := c.try(p, policies, strings.ReplaceAll(plain, `{app: "vllm"}`, fmt.Sprintf("{app: %q}", name))); status != http.StatusUnprocessableEntity {
			p.Errorf("kube-apiserver takes the label %q, vallum refuses it: %d %s", name, status, said)
		}
		if _, err := printedPolicy(p, "--app", name); err == nil {
			p.Errorf("vallum takes the label %q", name)
		}
	}
}

func (c *cluster) podIsTaken(p *report.Proof, _ *stand) {
	c.need(p)
	for _, topology := range []string{"dp", "tp", "pp", "ray", "pd-nixl", "pd-mooncake"} {
		for _, name := range []string{"a", "b"} {
			printed, err := c.lab.Node(name).Vallum(p.Context(), "env", "--topology", topology, "--format", "kubernetes", "--even-if-down")
			if err != nil {
				p.Fatal(err)
			}
			pod := podOf(printed.Out)
			if status, said := c.try(p, "/api/v1/namespaces/vllm/pods", pod); status != http.StatusCreated {
				p.Errorf("%s on %s: %d %s\n%s", topology, name, status, said, pod)
			}
		}
	}
}

// podOf puts what was printed where it says it belongs: hostNetwork to the pod, the rest to its container.
func podOf(printed string) string {
	var container strings.Builder
	for line := range strings.Lines(printed) {
		if line != "hostNetwork: true\n" {
			container.WriteString("    " + line)
		}
	}
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: node}\nspec:\n  hostNetwork: true\n  containers:\n  - name: vllm\n    image: vllm\n" + container.String()
}
