package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func newIsolatePolicy(s streams) *cobra.Command {
	var p networkPolicy
	c := &cobra.Command{
		Use:   "policy kubernetes",
		Short: "Prints NetworkPolicies, for clusters whose CNI isolates",
		Long: "NetworkPolicy isolates and does not encrypt, and it does not apply to pods with hostNetwork: true, which multi-node\n" +
			"vLLM often uses: for those use `isolate up` on the hosts, or the CNI's host firewall. Cilium encrypts between pods\n" +
			"with encryption.enabled=true and encryption.type=wireguard, and what host-network pods send with\n" +
			"encryption.nodeEncryption=true.",
		Example: "  vallum isolate policy kubernetes | kubectl apply -f -\n" +
			"  vallum isolate policy kubernetes --namespace llm --gateway-namespace edge",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if args[0] != "kubernetes" {
				return usagef("policy %q is not known; known is kubernetes", args[0])
			}
			if err := p.check(); err != nil {
				return err
			}
			_, err := fmt.Fprint(s.whole().out, p)
			return err
		},
	}
	c.Flags().StringVar(&p.namespace, "namespace", "vllm", "the namespace of vLLM's pods")
	c.Flags().StringVar(&p.app, "app", "vllm", "label app of vLLM's pods")
	c.Flags().StringVar(&p.gatewayNamespace, "gateway-namespace", "", "the namespace of the gateway's pods (default: vLLM's)")
	c.Flags().StringVar(&p.gateway, "gateway", "vallum", "label app of the gateway's pods")
	c.Flags().Uint16Var(&p.port, "api-port", 8000, "vLLM's --port, 1 to 65535")
	return c
}

// networkPolicy is whose pods the printed policy is about.
type networkPolicy struct {
	namespace, app            string
	gatewayNamespace, gateway string
	port                      uint16
}

// check refuses what kube-apiserver would (apimachinery, util/validation): a policy that does not load guards nothing.
func (p *networkPolicy) check() error {
	if p.gatewayNamespace == "" {
		p.gatewayNamespace = p.namespace
	}
	for _, f := range []struct{ flag, name string }{{"--namespace", p.namespace}, {"--gateway-namespace", p.gatewayNamespace}} {
		if !isName(f.name, "") {
			return usagef("%s %q is no name of a namespace: a-z, 0-9 and - inside, at most 63", f.flag, f.name)
		}
	}
	for _, f := range []struct{ flag, label string }{{"--app", p.app}, {"--gateway", p.gateway}} {
		if !isName(f.label, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_.") {
			return usagef("%s %q is no value of a label: letters, digits, and - _ . inside, at most 63", f.flag, f.label)
		}
	}
	if p.port == 0 {
		return usagef("--api-port 0 is no port: 1 to 65535, what vLLM has as --port")
	}
	return nil
}

// isName tells whether s is 1 to 63 of a-z, 0-9, - and more, and begins and ends with a letter or a digit.
func isName(s, more string) bool {
	const edge = "abcdefghijklmnopqrstuvwxyz0123456789"
	if s == "" || len(s) > 63 || strings.Trim(s, edge+"-"+more) != "" {
		return false
	}
	ends := strings.ToLower(s[:1] + s[len(s)-1:])
	return strings.Trim(ends, edge) == ""
}

// String is the policy in YAML. Names are quoted, for YAML reads 123, on and null as something else.
func (p networkPolicy) String() string {
	q := strconv.Quote
	return fmt.Sprintf(policyText, q(p.namespace), q(p.app), q(p.app), q(p.gatewayNamespace), q(p.gateway), p.port, q(p.app))
}

const policyText = `# NetworkPolicy isolates; it does not encrypt, and pods with hostNetwork: true are not covered at all.
# Cilium: encryption.enabled=true, encryption.type=wireguard encrypts between pods; encryption.nodeEncryption=true for
# what host-network pods send. Without a CNI that enforces policies these lines do nothing.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: vllm-isolate, namespace: %s}
spec:
  podSelector: {matchLabels: {app: %s}}
  policyTypes: [Ingress, Egress]
  ingress:
    # vLLM's pods among themselves: on any port, for all but a handful are the kernel's choice
    - from: [{podSelector: {matchLabels: {app: %s}}}]
    # the gateway, and nobody else, reaches the API
    - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}, podSelector: {matchLabels: {app: %s}}}]
      ports: [{protocol: TCP, port: %d}]
  egress:
    # nothing else: models are mounted, or a line here names where they are fetched from
    - to: [{podSelector: {matchLabels: {app: %s}}}]
    - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
      ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
`
