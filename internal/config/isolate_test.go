package config

import (
	"strings"
	"testing"
)

func TestANodesPartIsReadAlone(t *testing.T) {
	n, err := ParseNode("vallum.yaml", []byte("version: 1\nisolate: {fleet_key: lab+1+x}\n"))
	if err != nil {
		t.Fatal(told(err))
	}
	if len(n.Allow) != 1 || n.Allow[0].Name != "ssh" || n.Allow[0].Port != 22 || n.Allow[0].Protocol != "tcp" || n.Device != "vallum0" || n.Underlay {
		t.Errorf("%+v", n)
	}
	n, err = ParseNode("vallum.yaml", []byte("isolate: {fleet_key: lab+1+x, allow: []}\n"))
	if err != nil || len(n.Allow) != 0 {
		t.Errorf("an empty list allows something: %+v, %v", n, err)
	}
}

func TestANodesPartTellsEveryProblem(t *testing.T) {
	for want, text := range map[string]string{
		"isolate: is missing":                      "version: 1\n",
		"isolate.fleet_key: is missing":            "isolate: {mtu: 1400}\n",
		"isolate.alow: there is no such key":       "isolate: {fleet_key: k, alow: []}\n",
		`"eth0; drop" is not a network device's`:   "isolate: {fleet_key: k, device: \"eth0; drop\"}\n",
		"isolate.mtu: 90 is not":                   "isolate: {fleet_key: k, mtu: 90}\n",
		"isolate.allow[0].port: 0 is not a port":   "isolate: {fleet_key: k, allow: [{name: ssh}]}\n",
		`isolate.allow[0].from[0]: "10.0.0.1/8"`:   "isolate: {fleet_key: k, allow: [{name: ssh, port: 22, from: [10.0.0.1/8]}]}\n",
		`isolate.allow[0].name: "a\nb" is not a`:   "isolate: {fleet_key: k, allow: [{name: \"a\\nb\", port: 22}]}\n",
		`isolate.allow[0].protocol: "sctp" is not`: "isolate: {fleet_key: k, allow: [{name: x, port: 22, protocol: sctp}]}\n",
		"version: stands on line 1 already":        "version: 1\nversion: 1\nisolate: {fleet_key: k}\n",
	} {
		_, err := ParseNode("vallum.yaml", []byte(text))
		if err == nil || !strings.Contains(told(err), want) {
			t.Errorf("got %s\nwant %s", told(err), want)
		}
	}
}
