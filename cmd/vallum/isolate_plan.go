package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/env"
	"github.com/vallum/vallum/internal/isolate/fleet"
)

// isolateInput is where a node's plan comes from.
type isolateInput struct{ config, manifest, state, snapshot string }

func (i *isolateInput) flags(c *cobra.Command) {
	c.Flags().StringVar(&i.config, "config", "vallum.yaml", "the node's configuration, with its part isolate")
	c.Flags().StringVar(&i.manifest, "manifest", "", "the signed manifest; - for standard input (default: the configuration's, or manifest.signed in the state folder)")
	isolateStateFlag(c, &i.state)
}

// node is what is known before the machine is looked at.
type node struct {
	conf     *config.Isolate
	manifest *fleet.Manifest
	state    string
	public   string // the node's WireGuard key
	seen     fleet.Seen
}

// read checks the manifest's signature and serial. It does not remember the serial: up does.
func (i *isolateInput) read(s streams) (*node, error) {
	n := &node{}
	var err error
	if n.state, err = isolateState(i.state); err != nil {
		return nil, err
	}
	b, err := readFileOr(i.config, s.in)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w%s", err, whenMissing(err, "it holds at least isolate: {fleet_key: \"…\"}; --config names another file"))
	}
	if n.conf, err = config.ParseNode(i.config, b); err != nil {
		return nil, err
	}
	file := i.manifest
	if file == "" {
		file = n.conf.Manifest
	}
	if file == "" {
		file = filepath.Join(n.state, "manifest.signed")
	}
	if b, err = readFileOr(file, s.in); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w%s", err, whenMissing(err, "put the operator's manifest.signed there, or name it with --manifest"))
	}
	if n.manifest, err = fleet.Open(b, n.conf.FleetKey); err != nil {
		return nil, err
	}
	seen, err := fleet.ReadSeen(filepath.Join(n.state, "seen.json"))
	if err != nil {
		return nil, err
	}
	if n.seen, err = seen.Admit(n.manifest); err != nil {
		return nil, err
	}
	key, err := fleet.ReadNodeKey(filepath.Join(n.state, "node.key"))
	if err != nil {
		return nil, err
	}
	n.public = key.Public()
	return n, nil
}

// whenMissing is a hint for a file that is not there.
func whenMissing(err error, hint string) string {
	if !errors.Is(err, os.ErrNotExist) {
		return ""
	}
	return "\nhint: " + hint
}

// plan looks at the machine, or at a snapshot that was made of it, and plans.
func (i *isolateInput) plan(n *node) (*isolate.Plan, *isolate.Snapshot, error) {
	snapshot := &isolate.Snapshot{}
	if i.snapshot == "" {
		var err error
		if snapshot, err = observeMachine(n.state); err != nil {
			return nil, nil, err
		}
		observePaths(snapshot, n.state, n.endpoints())
	} else {
		b, err := os.ReadFile(i.snapshot)
		if err != nil {
			return nil, nil, fmt.Errorf("reading the snapshot: %w", err)
		}
		if err := json.Unmarshal(b, snapshot); err != nil {
			return nil, nil, fmt.Errorf("reading the snapshot: %w", err)
		}
	}
	p, err := isolate.New(n.conf, n.manifest, snapshot, n.public)
	return p, snapshot, err
}

// endpoints are where the other members are reached.
func (n *node) endpoints() (list []netip.AddrPort) {
	for _, peer := range n.manifest.Nodes {
		if peer.PublicKey != n.public {
			list = append(list, peer.Endpoint)
		}
	}
	return list
}

func newIsolatePlan(s streams) *cobra.Command {
	in := &isolateInput{}
	var asJSON, nft bool
	c := &cobra.Command{
		Use:   "plan",
		Short: "Prints what up would do on this node, and what it would cut off",
		RunE: func(*cobra.Command, []string) error {
			n, err := in.read(s)
			if err != nil {
				return err
			}
			p, _, err := in.plan(n)
			if err != nil {
				return err
			}
			if err := n.manifest.Current(time.Now()); err != nil {
				fmt.Fprintf(s.err, "vallum: up would refuse: %v\n", err)
			}
			switch {
			case asJSON:
				return printJSON(s, p)
			case nft:
				_, err = fmt.Fprint(s.whole().out, p.Rules.Text())
				return err
			}
			return p.Print(s.out)
		},
	}
	in.flags(c)
	c.Flags().StringVar(&in.snapshot, "snapshot", "", "plan for the machine that isolate observe looked at")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.Flags().BoolVar(&nft, "nft", false, "only the rules, as nft reads them")
	return c
}

func newIsolateObserve(s streams) *cobra.Command {
	var state string
	c := &cobra.Command{
		Use:   "observe [ENDPOINT…]",
		Short: "Prints what a plan knows of this machine, as JSON",
		Long: "For each endpoint, ADDRESS:PORT, how much fits through to it without being taken apart is probed too: for a plan that\n" +
			"is made elsewhere with --snapshot. plan and up probe the endpoints of the manifest by themselves.",
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			var to []netip.AddrPort
			for _, arg := range args {
				endpoint, err := netip.ParseAddrPort(arg)
				if err != nil {
					return usagef("%q is not ADDRESS:PORT", arg)
				}
				to = append(to, endpoint)
			}
			dir, err := isolateState(state)
			if err != nil {
				return err
			}
			snapshot, err := observeMachine(dir)
			if err != nil {
				return err
			}
			if len(to) > 0 {
				observePaths(snapshot, dir, to)
			}
			return printJSON(s, snapshot)
		},
	}
	isolateStateFlag(c, &state)
	return c
}

func printJSON(s streams, v any) error {
	enc := json.NewEncoder(s.whole().out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func newIsolateEnv(s streams) *cobra.Command {
	in := &isolateInput{}
	ask := env.Ask{}
	var format string
	var list, asJSON bool
	c := &cobra.Command{
		Use:   "env",
		Short: "Prints what vLLM needs to use the overlay, per topology and node",
		Example: "  vallum isolate env --topology dp\n" +
			"  vallum isolate env --topology tp --node node-b --first node-a --format systemd\n" +
			"  vallum isolate env --list",
		RunE: func(c *cobra.Command, _ []string) error {
			if list {
				_, err := fmt.Fprint(s.out, env.Topologies())
				return err
			}
			n, err := in.read(s)
			if err != nil {
				return err
			}
			if ask.Node == "" {
				self, ok := n.manifest.ByKey(n.public)
				if !ok {
					return errors.New("this node is not in the manifest; name one with --node")
				}
				ask.Node = self.Name
				// For this node itself: an environment for an overlay that is not there makes vLLM hang.
				if err := overlayHolds(n.state); err != nil && !c.Flags().Changed("even-if-down") {
					return fmt.Errorf("%w\nhint: --even-if-down prints it all the same", err)
				}
			}
			if snapshot, err := observeMachine(n.state); err == nil && snapshot.HasRDMA() {
				ask.RDMA = true
			}
			setting, err := env.For(n.manifest, n.conf.Device, ask)
			if err != nil {
				return usageError{err}
			}
			if asJSON {
				return printJSON(s, setting)
			}
			return setting.Print(s.whole().out, format)
		},
	}
	in.flags(c)
	askFlags(c, &ask)
	c.Flags().StringVar(&ask.Node, "node", "", "of which node (default: this one)")
	c.Flags().StringVar(&format, "format", "shell", env.Formats)
	c.Flags().BoolVar(&list, "list", false, "print the topologies that are known")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.Flags().Bool("even-if-down", false, "print although the overlay of this node does not hold")
	return c
}

func askFlags(c *cobra.Command, ask *env.Ask) {
	c.Flags().StringVar(&ask.Topology, "topology", "", "dp, tp, pp, ray, pd-nixl or pd-mooncake")
	c.Flags().StringVar(&ask.First, "first", "", "the node with rank 0 (default: the first by name)")
	c.Flags().IntVar(&ask.PerNode, "per-node", 1, "engines (dp) or GPUs (tp, pp) of each node")
	c.Flags().BoolVar(&ask.Events, "kv-events", false, "KV events are published")
	c.Flags().BoolVar(&ask.RDMA, "rdma", false, "there are RDMA devices, which traffic would take past the overlay")
}
