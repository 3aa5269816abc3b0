package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

func newIsolateUnit(s streams) *cobra.Command {
	in := &isolateInput{}
	c := &cobra.Command{
		Use:   "unit",
		Short: "Prints the systemd unit that makes the overlay after a reboot",
		RunE: func(c *cobra.Command, _ []string) error {
			program, err := os.Executable()
			if err != nil {
				return err
			}
			dir, err := isolateState(in.state)
			if err != nil {
				return err
			}
			// systemd starts it in another folder than this one.
			args := []string{program, "isolate", "up", "--state", dir}
			for _, f := range []struct{ flag, file string }{{"--config", in.config}, {"--manifest", in.manifest}} {
				if f.file == "" {
					continue
				}
				if f.file == "-" {
					return usagef("%s: a unit has no standard input; name a file", f.flag)
				}
				file, err := filepath.Abs(f.file)
				if err != nil {
					return err
				}
				args = append(args, f.flag, file)
			}
			for i, a := range args {
				if args[i], err = unitWord(a); err != nil {
					return usageError{err}
				}
			}
			_, err = fmt.Fprintf(s.out, unitText, strings.Join(args, " "))
			return err
		},
	}
	in.flags(c)
	return c
}

// unitWord is a word of a command line in a unit file (systemd.service(5), "Command lines").
func unitWord(s string) (string, error) {
	if strings.ContainsAny(s, "\n\r\x00") {
		return "", fmt.Errorf("%q cannot stand in a unit", s)
	}
	s = strings.NewReplacer("%", "%%", "$", "$$").Replace(s)
	if strings.ContainsAny(s, " \t\"'\\;") {
		s = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	return s, nil
}

// up repairs without asking what was confirmed before; what was not is rolled back, for nobody is there to confirm. There
// is no ExecStop: it would run when the machine goes down, and make the next boot forget what was confirmed.
const unitText = `[Unit]
Description=Vallum's network between vLLM nodes
Wants=network-online.target
After=network-online.target
Before=vllm.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=%s
# Longer than a confirmation that does not come.
TimeoutStartSec=3min
# Stopping this unit leaves the overlay and its rules; vallum isolate down removes them. The tunnel is a unit of its own.
KillMode=process

[Install]
WantedBy=multi-user.target
`

func newIsolatePolicy(s streams) *cobra.Command {
	var namespace, app, gateway string
	var port uint16
	c := &cobra.Command{
		Use:   "policy kubernetes",
		Short: "Prints NetworkPolicies, for clusters whose CNI isolates",
		Long: "NetworkPolicy isolates and does not encrypt, and it does not apply to pods with hostNetwork: true, which multi-node\n" +
			"vLLM often uses: for those use `isolate up` on the hosts, or the CNI's host firewall. Cilium encrypts between pods\n" +
			"with encryption.enabled=true and encryption.type=wireguard, and what host-network pods send with\n" +
			"encryption.nodeEncryption=true.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if args[0] != "kubernetes" {
				return usagef("policy %q is not known; known is kubernetes", args[0])
			}
			for _, name := range []string{namespace, app, gateway} {
				if !isLabel(name) {
					return usagef("%q is not a Kubernetes name: a-z, 0-9 and -", name)
				}
			}
			_, err := fmt.Fprintf(s.out, policyText, namespace, app, app, gateway, port, app)
			return err
		},
	}
	c.Flags().StringVar(&namespace, "namespace", "vllm", "the namespace of the pods")
	c.Flags().StringVar(&app, "app", "vllm", "label app of vLLM's pods")
	c.Flags().StringVar(&gateway, "gateway", "vallum", "label app of the gateway's pods")
	c.Flags().Uint16Var(&port, "api-port", 8000, "vLLM's --port")
	return c
}

func isLabel(s string) bool {
	for _, c := range s {
		if c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 63
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
    - from: [{podSelector: {matchLabels: {app: %s}}}]
      ports: [{protocol: TCP, port: %d}]
  egress:
    - to: [{podSelector: {matchLabels: {app: %s}}}]
    - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
      ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
`
