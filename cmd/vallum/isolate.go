package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/isolate/fleet"
)

func newIsolate(s streams) *cobra.Command {
	s = s.fitted()
	c := &cobra.Command{
		Use:   "isolate",
		Short: "Makes, proves and watches the network between vLLM's nodes",
		Long: "vLLM's traffic between nodes is neither encrypted nor authenticated, and partly executes what it receives. isolate\n" +
			"puts it into a WireGuard network of the nodes that an operator signed for, and refuses everything else.\n\n" +
			"  operator            node\n" +
			"  isolate init lab    isolate keygen   prints the node's public key\n" +
			"  (edit fleet.yaml)\n" +
			"  isolate sign        isolate plan     what up would do, and would cut off\n" +
			"                      isolate up       rolled back unless confirmed\n" +
			"                      isolate env      what vLLM needs to use it\n" +
			"                      isolate verify   does it hold?",
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newIsolateInit(s), newIsolateKeygen(s), newIsolateSign(s), newIsolateShow(s), newIsolatePlan(s), newIsolateEnv(s))
	c.AddCommand(newIsolateObserve(s), newIsolatePolicy(s), newIsolateUnit(s))
	c.AddCommand(isolateHere(s)...)
	fitErrors(c)
	return c
}

// exitInconclusive is the status of a test that saw nothing to test: neither yes nor no.
const exitInconclusive = 3

// exitNotProtected is the status of an audit that found nothing outside, on a machine where traffic can leave by what no
// rule sees.
const exitNotProtected = 4

// statusError ends a command with its own exit status, without a message: the command has said it all.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("status %d", int(e)) }

func newIsolateInit(s streams) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:     "init FLEET",
		Short:   "Makes a fleet: the operator's key and a draft of the manifest",
		Example: "  vallum isolate init lab --dir fleet",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			private, public, err := fleet.NewKey(args[0])
			if err != nil {
				return err
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			draft := filepath.Join(dir, "fleet.yaml")
			if _, err := os.Stat(draft); err == nil {
				return fmt.Errorf("%q stands already; a fleet is never overwritten", draft)
			}
			if err := fleet.WriteSecret(filepath.Join(dir, "fleet.key"), private); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "fleet.pub"), []byte(public+"\n"), 0o644); err != nil {
				return err
			}
			text := fmt.Sprintf(draftText, args[0], time.Now().UTC().AddDate(0, 3, 0).Format(time.DateOnly))
			if err := os.WriteFile(draft, []byte(text), 0o644); err != nil {
				return err
			}
			fmt.Fprintln(s.out, public)
			s.hint("nodes pin the line above in their vallum.yaml:\n  isolate: {fleet_key: \"%s\"}", public)
			s.hint("name the nodes in %s, then: vallum isolate sign --dir %s", draft, dir)
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", ".", "where fleet.key, fleet.pub and fleet.yaml are written")
	return c
}

const draftText = `format: 1
fleet: %s
serial: 1                  # one more with every change; nodes refuse a lower one
expires: %sT00:00:00Z   # up refuses an expired one; a running overlay goes on
overlay: [10.99.0.0/24]    # a range that nothing else uses; an IPv6 one may stand beside it
api_port: 8000             # vLLM's --port, open to members of role gateway
nodes:
  # public_key is what vallum isolate keygen prints on the node; endpoint is where the other nodes reach it
  # - {name: node-a, public_key: "", endpoint: "192.0.2.1:51820", addresses: [10.99.0.1], roles: [vllm]}
  # - {name: gate, public_key: "", endpoint: "192.0.2.9:51820", addresses: [10.99.0.9], roles: [gateway]}
`

func newIsolateKeygen(s streams) *cobra.Command {
	var state, peer string
	c := &cobra.Command{
		Use:   "keygen",
		Short: "Makes this node's key and prints the public half",
		Long: "The private half is written to the state folder with mode 0600; it is in no argument and no environment. Run again,\n" +
			"keygen prints the public half of the key that is there. --preshared PEER reads a key that both nodes of the pair\n" +
			"share from standard input: 32 bytes in base64, such as of `openssl rand -base64 32`. Both need the same, and then up:\n" +
			"with another key, or with one on one side only, the two do not hear each other.",
		RunE: func(*cobra.Command, []string) error {
			dir, err := isolateState(state)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			if peer != "" {
				return writePreshared(dir, peer, s.in)
			}
			file := filepath.Join(dir, "node.key")
			key, err := fleet.ReadNodeKey(file)
			if errors.Is(err, os.ErrNotExist) {
				key, err = fleet.CreateNodeKey(file)
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(s.out, key.Public())
			return nil
		},
	}
	isolateStateFlag(c, &state)
	c.Flags().StringVar(&peer, "preshared", "", "read the key shared with this peer from standard input")
	return c
}

func writePreshared(dir, peer string, in io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(in, 1<<10))
	if err != nil {
		return err
	}
	if !isName(peer, "") {
		return usagef("--preshared: %q is not a node's name, such as stands in the manifest", peer)
	}
	line := strings.TrimSpace(string(b))
	if _, err := fleet.ParsePreshared(line); err != nil {
		return usageError{err}
	}
	folder := filepath.Join(dir, "preshared")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	return fleet.WriteSecret(filepath.Join(folder, peer+".key"), line)
}

func newIsolateSign(s streams) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "sign",
		Short: "Checks fleet.yaml and signs it as manifest.signed",
		RunE: func(*cobra.Command, []string) error {
			b, err := os.ReadFile(filepath.Join(dir, "fleet.yaml"))
			if err != nil {
				return fmt.Errorf("reading the fleet: %w%s", err, whenMissing(err, "--dir names the folder in which init wrote it"))
			}
			m, err := fleet.ParseDraft(b)
			if err != nil {
				return err
			}
			private, err := fleet.ReadSecret(filepath.Join(dir, "fleet.key"))
			if err != nil {
				return err
			}
			out := filepath.Join(dir, "manifest.signed")
			if err := newerThan(m, out, filepath.Join(dir, "fleet.pub")); err != nil {
				return err
			}
			signed, err := fleet.Sign(m, private, time.Now())
			if err != nil {
				return err
			}
			if err := fleet.WriteWhole(out, signed); err != nil {
				return err
			}
			fmt.Fprintf(s.out, "%s: fleet %s, serial %d, %d node(s), until %s\n", out, m.Fleet, m.Serial, len(m.Nodes), m.Expires.Format(time.RFC3339))
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", ".", "where fleet.yaml, fleet.key and fleet.pub lie")
	return c
}

// newerThan refuses to sign a serial that was signed already: nodes that have seen it would refuse the new one.
func newerThan(m *fleet.Manifest, signed, public string) error {
	b, err := os.ReadFile(signed)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pub, err := os.ReadFile(public)
	if err != nil {
		return err
	}
	last, err := fleet.Open(b, string(pub))
	if err != nil {
		return fmt.Errorf("%s: %w", signed, err)
	}
	if m.Serial <= last.Serial {
		return fmt.Errorf("serial %d was signed already; write serial: %d", last.Serial, last.Serial+1)
	}
	return nil
}

func newIsolateShow(s streams) *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "show MANIFEST",
		Short: "Checks a signed manifest and prints who belongs to the fleet",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			pub, err := os.ReadFile(key)
			if err != nil {
				return fmt.Errorf("reading the fleet's public key: %w%s", err, whenMissing(err, "--key names it: the fleet.pub that init wrote"))
			}
			b, err := readFileOr(args[0], s.in)
			if err != nil {
				return err
			}
			m, err := fleet.Open(b, string(pub))
			if err != nil {
				return err
			}
			fmt.Fprintf(s.out, "fleet %s, serial %d, until %s, overlay %v\n", m.Fleet, m.Serial, m.Expires.Format(time.RFC3339), m.Overlay)
			for _, n := range m.Nodes {
				fmt.Fprintf(s.out, "  %-20s %v at %s, %s, key %s\n", n.Name, n.Addresses, n.Endpoint, strings.Join(n.Roles, " and "), n.PublicKey)
			}
			return m.Current(time.Now())
		},
	}
	c.Flags().StringVar(&key, "key", "fleet.pub", "file with the fleet's public key")
	return c
}

// readFileOr reads a file, or standard input for "-".
func readFileOr(file string, in io.Reader) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(io.LimitReader(in, 8<<20))
	}
	return os.ReadFile(file)
}

func isolateStateFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "state", "", "folder of the node's key and of what was applied (default: isolate in Vallum's state folder)")
}

// isolateState is the folder that was named, or the default one.
func isolateState(dir string) (string, error) {
	if dir != "" {
		return filepath.Abs(dir) // processes that outlive the command stand elsewhere
	}
	state, err := stateOrDefault("")
	if err != nil {
		return "", err
	}
	return filepath.Join(state, "isolate"), nil
}
