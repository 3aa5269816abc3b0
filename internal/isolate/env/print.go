package env

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
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
			b.WriteString(s.commandLine("vllm serve MODEL"))
		}
	case "systemd":
		b.WriteString("[Unit]\nRequires=vallum-isolate.service\nAfter=vallum-isolate.service\n[Service]\n")
		for _, e := range s.Env {
			fmt.Fprintf(&b, "Environment=%s\n", strconv.Quote(e.Name+"="+e.Value))
		}
		b.WriteString(s.commandLine("ExecStart=… vllm serve MODEL"))
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
		b.WriteString("  # a Service called vllm would set VLLM_PORT to tcp://…, with which vLLM does not\n  # start: call it something else\n")
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
	comment(b, fmt.Sprintf("topology %s, node %s, rank %d; %s", s.Topology, s.Node, s.Rank, proof))
	for _, n := range s.Notes {
		comment(b, n)
	}
}

// columns are those of a terminal that nobody has widened. What programs read is not broken there, comments are.
const columns = 80

func comment(b *strings.Builder, text string) {
	writeFolded(b, "# ", "#   ", "", strings.Fields(text))
}

// commandLine is a comment with a command and the flags as a shell takes them: it is one command without its marks.
func (s *Setting) commandLine(command string) string {
	words := strings.Fields(command)
	for i := 0; i < len(s.Flags); i++ {
		word := shellQuote(s.Flags[i])
		if i+1 < len(s.Flags) && strings.HasPrefix(word, "--") && !strings.HasPrefix(s.Flags[i+1], "--") {
			i++
			word += " " + shellQuote(s.Flags[i]) // a flag stands beside its value
		}
		words = append(words, word)
	}
	var b strings.Builder
	writeFolded(&b, "# ", "#   ", " \\", words)
	return b.String()
}

// writeFolded writes words in lines of at most columns, where the words allow it; every line but the last ends as told.
func writeFolded(b *strings.Builder, first, others, end string, words []string) {
	line := first
	for i, w := range words {
		if i > 0 && utf8.RuneCountInString(line+" "+w+end) > columns {
			b.WriteString(line + end + "\n")
			line = others
		} else if i > 0 {
			line += " "
		}
		line += w
	}
	b.WriteString(line + "\n")
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
