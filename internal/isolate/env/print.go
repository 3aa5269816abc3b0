package env

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Formats are what Print writes.
const Formats = "shell, systemd, compose, kubernetes"

// Print writes the setting in one of Formats.
func (s *Setting) Print(w io.Writer, format string) error {
	var b strings.Builder
	s.head(&b)
	switch format {
	case "shell":
		for _, e := range s.Env {
			fmt.Fprintf(&b, "export %s=%s\n", e.Name, shellQuote(e.Value))
		}
		for _, l := range s.Before {
			fmt.Fprintln(&b, l)
		}
		if len(s.Flags) > 0 {
			fmt.Fprintf(&b, "# vllm serve MODEL %s\n", s.FlagLine())
		}
	case "systemd":
		b.WriteString("[Unit]\nRequires=vallum-isolate.service\nAfter=vallum-isolate.service\n[Service]\n")
		for _, e := range s.Env {
			fmt.Fprintf(&b, "Environment=%s\n", strconv.Quote(e.Name+"="+e.Value))
		}
		fmt.Fprintf(&b, "# ExecStart=… vllm serve MODEL %s\n", s.FlagLine())
	case "compose":
		b.WriteString("network_mode: host\nenvironment:\n")
		for _, e := range s.Env {
			fmt.Fprintf(&b, "  %s: %s\n", e.Name, strconv.Quote(e.Value))
		}
		b.WriteString(s.arguments("command:", "  "))
	case "kubernetes":
		b.WriteString("hostNetwork: true\nenv:\n")
		for _, e := range s.Env {
			fmt.Fprintf(&b, "  - {name: %s, value: %s}\n", e.Name, strconv.Quote(e.Value))
		}
		b.WriteString("  # a Service called vllm would set VLLM_PORT to tcp://… and vLLM would not start: call it something else\n")
		b.WriteString(s.arguments("args:", "  "))
	default:
		return fmt.Errorf("format %q is not one of %s", format, Formats)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s *Setting) head(b *strings.Builder) {
	proof := "from vLLM's sources, unproven: nobody has run it over the overlay"
	if s.Proven {
		proof = "proven: run with the real vLLM over two nodes"
	}
	fmt.Fprintf(b, "# topology %s, node %s, rank %d; %s\n", s.Topology, s.Node, s.Rank, proof)
	for _, n := range s.Notes {
		fmt.Fprintf(b, "# %s\n", n)
	}
}

// FlagLine is the flags as a shell takes them.
func (s *Setting) FlagLine() string {
	var q []string
	for _, f := range s.Flags {
		q = append(q, shellQuote(f))
	}
	return strings.Join(q, " ")
}

func (s *Setting) arguments(key, indent string) string {
	if len(s.Flags) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(key + "  # after the model\n")
	for _, f := range s.Flags {
		fmt.Fprintf(&b, "%s- %s\n", indent, strconv.Quote(f))
	}
	return b.String()
}

// shellQuote leaves plain words as they are.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.,:/=%+") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
