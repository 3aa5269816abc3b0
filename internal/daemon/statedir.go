package daemon

import (
	"fmt"
	"os"
	"path/filepath"
)

// StateDir is where the state is when nobody says otherwise: /var/lib/vallum for root, the XDG state folder for others.
func StateDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/vallum", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vallum"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding the state directory: %w; name one with --state DIR", err)
	}
	return filepath.Join(home, ".local", "state", "vallum"), nil
}

// stateFlag is what `vallum` has to be told when the state is not where it looks by itself.
func stateFlag(state string) string {
	if dir, err := StateDir(); err == nil && dir == state {
		return ""
	}
	return " --state " + state
}
