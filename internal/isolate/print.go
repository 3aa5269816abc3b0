package isolate

import (
	"fmt"
	"io"
	"strings"
)

// Print writes the plan for a person.
func (p *Plan) Print(w io.Writer) error {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	kind := "wireguard-go, in a process of its own"
	if p.Kernel {
		kind = "the kernel's WireGuard"
	}
	line("node %s of fleet %s, manifest serial %d", p.Node, p.Fleet, p.Serial)
	line("\ndevice %s: %s", p.Device, kind)
	line("  MTU %d, UDP port %d", p.MTU, p.Port)
	for _, a := range p.Addresses {
		line("  address %s", a)
	}
	for _, peer := range p.Peers {
		extra := ""
		if peer.Preshared {
			extra = ", pre-shared key"
		}
		line("  peer %s: key %s…, at %s%s", peer.Name, fingerprint(peer.PublicKey), peer.Endpoint, extra)
		line("    sends as %s", join(peer.Allowed))
		if peer.Path.MTU > 0 {
			line("    %d bytes fit through to it: %s", peer.Path.MTU, peer.Path.Proof)
		}
	}
	line("\nroutes")
	for _, r := range p.Routes {
		if r.Device == "" {
			line("  %s %s metric %d", r.Type, r.To, r.Metric)
			continue
		}
		line("  %s by %s", r.To, r.Device)
	}
	line("\nnftables\n%s", strings.TrimRight(indent(p.Rules.Text()), "\n"))
	line("\nhosts")
	for _, h := range p.Hosts {
		line("  %s", h)
	}
	line("\nenvironment of vLLM, in every topology (vallum isolate env prints the rest)")
	for _, e := range p.Environment {
		line("  %s=%s", e.Name, e.Value)
	}
	p.printNotes(line)
	_, err := io.WriteString(w, b.String())
	return err
}

func (p *Plan) printNotes(line func(string, ...any)) {
	if len(p.Cuts) > 0 {
		line("\nwould be cut off")
		for _, c := range p.Cuts {
			line("  %s\n    to keep it: %s", c.What, c.Right)
		}
	}
	if len(p.NotProtected) > 0 {
		line("\nNOT PROTECTED")
		for _, n := range p.NotProtected {
			line("  %s", n)
		}
	}
	line("\nto know")
	for _, n := range p.Warnings {
		line("  %s", n)
	}
}

func join[T fmt.Stringer](list []T) string {
	var s []string
	for _, v := range list {
		s = append(s, v.String())
	}
	return strings.Join(s, ", ")
}

func indent(s string) string {
	var lines []string
	for l := range strings.Lines(s) {
		lines = append(lines, "  "+strings.ReplaceAll(l, "\t", "  "))
	}
	return strings.Join(lines, "")
}
