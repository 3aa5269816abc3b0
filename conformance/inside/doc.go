// Package inside is the proofs that need a kernel of their own: its tests, with the build tag inside, run as a service of
// the machine that package machine boots, and say on a serial line what was shown. It refuses to take part in a boot of
// any other machine: without its marker on the disk every test fails.
package inside

import (
	"encoding/json"
	"strings"
)

// The properties, in the order in which they are shown.
const (
	Unloadable = "a WireGuard module that does not load: wireguard-go carries, talks with a peer's kernel, and goes on when the module is there"
	Carries    = "the kernel's device carries the overlay: no process does, its MTU is the path's, verify and an outsider find it whole"
	OnTheWire  = "an outsider reads what two nodes say in clear; over the kernel's device nothing but the tunnel's packets"
	Preshared  = "nodes whose pre-shared keys differ do not hear each other, those with the same do"
	Deleted    = "the kernel's device is deleted: nothing leaves in clear, status says it, and after up the same connection goes on"
	Removed    = "a node that a new serial removed is out, at once and on the kernel's device"
	Halfway    = "up is killed at each of its steps: nothing leaves in clear, and the next up repairs it"
	Exact      = "down, and a rollback that nobody prevents, leave the machine as it was: devices, addresses, routes, rules, hosts"
	NotOurs    = "a device of that name that somebody else made stays as it is, a WireGuard with keys of its own too"
	PortTaken  = "a port that another program has is named, and nothing is left behind"
	Reboot     = "the machine reboots: the printed unit makes the overlay by the kernel's device before vLLM's unit starts, and nobody confirms"
	Networkd   = "systemd-networkd is started again: what goes to the overlay still leaves by it only"
	PowerCut   = "the power is cut right after confirm: what was confirmed stands after the boot, and the older manifest stays refused"
)

// Names are the properties.
func Names() []string {
	return []string{Unloadable, Carries, OnTheWire, Preshared, Deleted, Removed, Halfway, Exact, NotOurs, PortTaken, Reboot, Networkd, PowerCut}
}

// What is said on the serial line beside Outcomes and logs.
const (
	Rebooting = "the machine reboots itself" // it ends then, to be started again
	CutPower  = "the power may be cut"       // now
	Finished  = "all is said"
)

// Outcome is how a proof inside the machine ended.
type Outcome struct {
	Name  string
	Shown bool
	Why   string // why it was not shown
}

const mark = "outcome "

// Line is the outcome as it is said.
func (o Outcome) Line() string {
	b, err := json.Marshal(o)
	if err != nil {
		return mark + err.Error()
	}
	return mark + string(b)
}

// Parse reads an outcome; ok is false for any other line.
func Parse(line string) (o Outcome, ok bool) {
	rest, ok := strings.CutPrefix(line, mark)
	return o, ok && json.Unmarshal([]byte(rest), &o) == nil
}
