package nft

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
)

// Load replaces our table by the ruleset in one batch, which the kernel takes whole or not at all, and reads it back.
func Load(r isolate.Ruleset) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	table := &nftables.Table{Name: isolate.TableName, Family: nftables.TableFamilyINet}
	// Adding it first makes deleting it right whether it was there or not.
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	for _, chain := range r.Chains {
		hook, ok := hooks[chain.Hook]
		if !ok {
			return fmt.Errorf("chain %q is not input, output or forward", chain.Hook)
		}
		policy := nftables.ChainPolicyAccept
		if chain.Drop {
			policy = nftables.ChainPolicyDrop
		}
		to := c.AddChain(&nftables.Chain{
			Name: chain.Hook, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(isolate.Priority), Policy: &policy,
		})
		for _, rule := range chain.Rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: to, Exprs: encode(rule), UserData: userdata.AppendString(nil, userdata.TypeComment, rule.Name)})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("loading the rules, of which none holds now: %w", err)
	}
	return Check(r)
}

var hooks = map[string]*nftables.ChainHook{
	"input": nftables.ChainHookInput, "output": nftables.ChainHookOutput, "forward": nftables.ChainHookForward,
}

// Check reads the rules back and says how they differ from the ruleset; nil when they are equal.
func Check(r isolate.Ruleset) error {
	loaded, err := read()
	if err != nil {
		return err
	}
	if loaded == nil {
		return errors.New("the rules are not loaded")
	}
	known := map[string]string{}
	for _, chain := range r.Chains {
		for _, rule := range chain.Rules {
			known[mark(rule.Name, encode(rule))] = rule.Text()
		}
	}
	var got []string
	for _, chain := range loaded {
		policy := "accept"
		if *chain.Policy == nftables.ChainPolicyDrop {
			policy = "drop"
		}
		if *chain.Priority != isolate.Priority || chain.Type != nftables.ChainTypeFilter {
			policy += fmt.Sprintf(" at priority %d of type %s", *chain.Priority, chain.Type)
		}
		got = append(got, chain.Name+": policy "+policy)
		for _, rule := range chain.rules {
			text, ok := known[mark(name(rule), rule.Exprs)]
			if !ok {
				text = "a rule with comment \"" + name(rule) + "\" that is not of the plan"
			}
			got = append(got, chain.Name+": "+text)
		}
	}
	if diff := isolate.Difference(r.Lines(), got); len(diff) > 0 {
		return fmt.Errorf("the rules in the kernel are not those of the plan:\n  %s", strings.Join(diff, "\n  "))
	}
	return nil
}

type loadedChain struct {
	*nftables.Chain
	rules []*nftables.Rule
}

// read is our table in the kernel, in the order of making; nil when there is none.
func read() ([]loadedChain, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("reading the rules: %w", err)
	}
	if err := awake(c); err != nil {
		return nil, err
	}
	var ours []loadedChain
	for _, chain := range all {
		if chain.Table.Name != isolate.TableName {
			continue
		}
		if chain.Policy == nil || chain.Priority == nil {
			return nil, fmt.Errorf("chain %q of our table hangs on no hook", chain.Name)
		}
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return nil, fmt.Errorf("reading the rules of chain %q: %w", chain.Name, err)
		}
		ours = append(ours, loadedChain{chain, rules})
	}
	return ours, nil
}

// awake refuses our table when it sleeps: its rules are all there, and none is asked (nft(8), "flags dormant").
func awake(c *nftables.Conn) error {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("reading the rules: %w", err)
	}
	for _, t := range tables {
		if t.Name == isolate.TableName && t.Flags != 0 {
			return fmt.Errorf("table %q is dormant, or has another flag that we did not set: its rules are there and may guard nothing", t.Name)
		}
	}
	return nil
}

// Remove deletes our table; that there is none is no error.
func Remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	table := &nftables.Table{Name: isolate.TableName, Family: nftables.TableFamilyINet}
	c.AddTable(table)
	c.DelTable(table)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("removing the rules: %w", err)
	}
	return nil
}

// Counters are the packets that each rule has met, by chain and name, as in "input refused".
func Counters() (map[string]uint64, error) {
	loaded, err := read()
	if err != nil || loaded == nil {
		return nil, err
	}
	sum := map[string]uint64{}
	for _, chain := range loaded {
		for _, rule := range chain.rules {
			for _, e := range rule.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					sum[chain.Name+" "+name(rule)] += c.Packets
				}
			}
		}
	}
	return sum, nil
}

// Tables are all tables of the namespace with the names of their chains, ours left out.
func Tables() ([]isolate.Table, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("listing nftables: %w", err)
	}
	var tables []isolate.Table
	at := map[string]int{}
	for _, chain := range chains {
		family := familyName(chain.Table.Family)
		key := family + " " + chain.Table.Name
		if chain.Table.Name == isolate.TableName {
			continue
		}
		if _, seen := at[key]; !seen {
			at[key] = len(tables)
			tables = append(tables, isolate.Table{Family: family, Name: chain.Table.Name})
		}
		tables[at[key]].Chains = append(tables[at[key]].Chains, chain.Name)
	}
	return tables, nil
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return fmt.Sprint(byte(f))
}

func name(r *nftables.Rule) string {
	s, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	return s
}

// mark is what a rule says, without what it has counted.
func mark(name string, exprs []expr.Any) string {
	var b strings.Builder
	b.WriteString(name)
	for _, e := range exprs {
		if _, counts := e.(*expr.Counter); counts {
			e = &expr.Counter{}
		}
		fmt.Fprintf(&b, "|%T%+v", e, e)
	}
	return b.String()
}

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "icmp": unix.IPPROTO_ICMP, "icmpv6": unix.IPPROTO_ICMPV6}
