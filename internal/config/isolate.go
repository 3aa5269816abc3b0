package config

import (
	"fmt"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Isolate is what concerns one node of an isolated fleet. What concerns all of them stands in the fleet's manifest.
type Isolate struct {
	FleetKey string   `yaml:"fleet_key" jsonschema_description:"The fleet's public key, the line in fleet.pub. A manifest that another key signed is refused."`
	Manifest string   `yaml:"manifest" jsonschema_description:"File of the signed manifest. Default: manifest.signed in the state directory's folder isolate."`
	Device   string   `yaml:"device" jsonschema_description:"Name of the overlay's network device. Default: vallum0."`
	MTU      int      `yaml:"mtu" jsonschema_description:"MTU of the overlay's device. Default: that of the underlay towards the peers, less 80."`
	Allow    []Allow  `yaml:"allow" jsonschema_description:"What may reach this node outside the overlay. Default: ssh, TCP port 22. A list that is given replaces the default."`
	Egress   []string `yaml:"container_bridges" jsonschema_description:"Bridges from which containers may open connections to the outside. Nothing is ever forwarded into them from outside."`
	Underlay bool     `yaml:"insecure_underlay_api" jsonschema_description:"Let allow name vLLM's API port: a source address is no authentication, and prompts cross the network in clear."`
}

// Allow is one thing that may reach a node outside the overlay.
type Allow struct {
	Name     string   `yaml:"name" jsonschema_description:"What it is, for the rule's comment."`
	Protocol string   `yaml:"protocol" jsonschema_description:"tcp (default) or udp."`
	Port     int      `yaml:"port" jsonschema_description:"The port on this node."`
	From     []string `yaml:"from" jsonschema_description:"Networks (CIDR) from which. Default: from everywhere."`
	Device   string   `yaml:"device" jsonschema_description:"The network device on which. Default: on all."`
}

// ParseNode reads the isolate part of a node's vallum.yaml: the file is decoded as strictly as by Parse, but what else
// stands there is not judged, for a node that only runs vLLM has no upstreams. The error is a *Problems.
func ParseNode(name string, b []byte) (*Isolate, error) {
	c, d, p := decodeFile(name, b)
	if d == nil {
		return nil, p
	}
	if c.Isolate == nil {
		d.at("isolate", "is missing", "isolate: {fleet_key: \"the line in fleet.pub\"}")
	}
	if len(d.problems) == 0 {
		c.Isolate.check(d)
	}
	if len(d.problems) > 0 {
		p.List = d.problems
		p.sort()
		return nil, p
	}
	// An empty list allows nothing; only an absent one is the default.
	if n, given := d.where["isolate.allow"]; given && n.Kind == yaml.SequenceNode && c.Isolate.Allow == nil {
		c.Isolate.Allow = []Allow{}
	}
	c.Isolate.defaults()
	return c.Isolate, nil
}

func (o *Isolate) defaults() {
	text(&o.Device, "vallum0")
	if o.Allow == nil {
		o.Allow = []Allow{{Name: "ssh", Port: 22}}
	}
	for i := range o.Allow {
		text(&o.Allow[i].Protocol, "tcp")
	}
}

// check judges the node's part; nil is a file without it.
func (o *Isolate) check(d *decoder) {
	if o == nil {
		return
	}
	if o.FleetKey == "" {
		d.at("isolate.fleet_key", "is missing: without it anybody could write the manifest", "the line in fleet.pub")
	}
	if o.Device != "" && !IsDevice(o.Device) {
		d.at("isolate.device", fmt.Sprintf("%q is not a network device's name", o.Device), "vallum0")
	}
	if o.MTU != 0 && (o.MTU < 1280 || o.MTU > 65000) {
		d.at("isolate.mtu", fmt.Sprintf("%d is not from 1280 to 65000", o.MTU), "1420")
	}
	for i, b := range o.Egress {
		if !IsDevice(b) {
			d.at(fmt.Sprintf("isolate.container_bridges[%d]", i), fmt.Sprintf("%q is not a network device's name", b), "docker0")
		}
	}
	for i, a := range o.Allow {
		a.check(d, fmt.Sprintf("isolate.allow[%d]", i))
	}
}

func (a Allow) check(d *decoder, path string) {
	if a.Name == "" || strings.Trim(a.Name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || len(a.Name) > 40 {
		d.at(path+".name", fmt.Sprintf("%q is not a name of a-z, 0-9, -, _ and .", a.Name), "name: ssh")
	}
	oneOf(d, path+".protocol", a.Protocol, "tcp", "udp")
	if a.Port < 1 || a.Port > 65535 {
		d.at(path+".port", fmt.Sprintf("%d is not a port", a.Port), "port: 22")
	}
	if a.Device != "" && !IsDevice(a.Device) {
		d.at(path+".device", fmt.Sprintf("%q is not a network device's name", a.Device), "device: eth0")
	}
	for i, s := range a.From {
		if p, err := netip.ParsePrefix(s); err != nil || p != p.Masked() || p.Addr().Is4In6() {
			d.at(fmt.Sprintf("%s.from[%d]", path, i), fmt.Sprintf("%q is not a network", s), "10.0.0.0/8 or fd00::/8")
		}
	}
}

// IsDevice reports whether s can name a network device of ours: what the kernel takes, less what a rule would read as
// something else.
func IsDevice(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && s != "lo" &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}
