package env

import (
	"fmt"
	"slices"
	"strings"
)

// Complete adds the setting's flags that a command does not give. It refuses a command that gives one with another
// value, or that gives a flag which this rank must not have. added is what it added.
func (s *Setting) Complete(args []string) (all, added []string, err error) {
	all = slices.Clone(args)
	for i := 0; i < len(s.Flags); i++ {
		name, value := s.Flags[i], ""
		if i+1 < len(s.Flags) && !strings.HasPrefix(s.Flags[i+1], "--") {
			i++
			value = s.Flags[i]
		}
		given, has := flagOf(args, name)
		switch {
		case !has && value == "":
			added = append(added, name)
		case !has:
			added = append(added, name, value)
		case value != "" && given != value:
			return nil, nil, fmt.Errorf("the command gives %s %s; on node %q topology %s needs %s %s", name, given, s.Node, s.Topology, name, value)
		}
	}
	if _, has := flagOf(args, "--api-server-count"); has && slices.Contains(s.Flags, "--headless") {
		return nil, nil, fmt.Errorf("the command gives --api-server-count, which vLLM refuses on the headless node %q", s.Node)
	}
	return append(all, added...), added, nil
}

// flagOf finds a flag as --name value or --name=value.
func flagOf(args []string, name string) (value string, has bool) {
	for i, a := range args {
		if rest, ok := strings.CutPrefix(a, name+"="); ok {
			return rest, true
		}
		if a == name {
			if i+1 < len(args) {
				return args[i+1], true
			}
			return "", true
		}
	}
	return "", false
}
