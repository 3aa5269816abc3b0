//go:build !linux

package main

import (
	"fmt"
	"net/netip"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/isolate"
)

// isolateLinuxOnly are the commands of isolateHere, for the systems that have none of them.
var isolateLinuxOnly = map[string]string{
	"up": "Applies the plan", "down": "Removes exactly what up added", "confirm": "Keeps what up applied", "status": "Says whether what was applied still holds",
	"audit": "Judges every socket of vLLM and Ray", "verify": "Proves the overlay from outside and on the wire", "exec": "Starts vLLM on the overlay",
}

// errNeedsLinux is what the commands that look at or change the machine say elsewhere.
func errNeedsLinux(command string) error {
	return fmt.Errorf("isolate %s works on Linux; this is %s. init, sign, show, plan --snapshot and env work here", command, runtime.GOOS)
}

func observeMachine(string) (*isolate.Snapshot, error) { return nil, errNeedsLinux("observe") }

func observePaths(*isolate.Snapshot, string, []netip.AddrPort) {}

func overlayHolds(string) error { return errNeedsLinux("up") }

// isolateHere are the commands that look at or change this machine: elsewhere they say what they need.
func isolateHere(streams) []*cobra.Command {
	var list []*cobra.Command
	for name, short := range isolateLinuxOnly {
		list = append(list, &cobra.Command{
			Use: name, Short: short + " (Linux)", DisableFlagParsing: true,
			Args: cobra.ArbitraryArgs,
			RunE: func(*cobra.Command, []string) error { return errNeedsLinux(name) },
		})
	}
	return list
}
