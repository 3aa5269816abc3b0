//go:build inside

package inside

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// marker is on the disk of the machine that package machine boots, and nowhere else. It says how often it has booted.
const marker = "/proof/boots"

// TestTheMachine goes on where the boot before it has ended.
func TestTheMachine(t *testing.T) {
	b, err := os.ReadFile(marker)
	if err != nil {
		t.Fatalf("this is not the machine of the proofs: %v", err)
	}
	boots, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	boots++
	if err := errors.Join(os.WriteFile(marker, fmt.Appendln(nil, boots), 0o644), exec.Command("sync").Run()); err != nil {
		t.Fatal(err)
	}
	fmt.Println("boot", boots)
	switch boots {
	case 1:
		firstBoot(t)
	case 2:
		prove(t, Reboot, afterReboot)
		prove(t, Networkd, networkd)
		t.Run("before the power is cut", beforePowerCut)
	default:
		prove(t, PowerCut, afterPowerCut)
		fmt.Println(Finished)
	}
}

func firstBoot(t *testing.T) {
	prove(t, Unloadable, unloadable)
	prove(t, Carries, carries)
	prove(t, OnTheWire, onTheWire)
	prove(t, Preshared, preshared)
	prove(t, Deleted, deleted)
	prove(t, Removed, removed)
	prove(t, Halfway, halfway)
	prove(t, Exact, exact)
	prove(t, NotOurs, notOurs)
	prove(t, PortTaken, portTaken)
	t.Run("settling the machine", settle)
	fmt.Println(Rebooting)
	if out, err := exec.Command("systemctl", "reboot").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
}

// The machine itself is node a. Node b is a network namespace of it, made anew at each boot.
const (
	fleetDir = "/var/lib/fleet"
	here     = "/var/lib/vallum/isolate"
	there    = "/var/lib/peer"
	inPeer   = "ip netns exec peer "
)

var files = map[string]string{
	"/etc/systemd/network/10-eth0.network": "[Match]\nName=eth0\n[Network]\nAddress=192.0.2.1/24\nGateway=192.0.2.254\nLinkLocalAddressing=no\n",
	// Debian's own unit of networkd waits for udev, and for nothing that makes devices.
	"/etc/systemd/system/underlay.service": `[Unit]
Before=systemd-networkd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec 'ip netns add peer; ip link add eth0 type veth peer name eth0 netns peer; ip -n peer link set lo up; ip -n peer addr add 192.0.2.2/24 dev eth0; ip -n peer link set eth0 up'
[Install]
WantedBy=multi-user.target
`,
	"/etc/systemd/system/peer.service": `[Unit]
After=underlay.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=` + inPeer + vallum + ` isolate up --state ` + there + ` --config ` + there + `/vallum.yaml --hosts "" --accept-cut
[Install]
WantedBy=multi-user.target
`,
	"/etc/systemd/system/vllm.service": `[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec '` + vallum + ` isolate status; ip -d link show vallum0; echo "VLLM_HOST_IP is $VLLM_HOST_IP"'
StandardOutput=file:/run/vllm.said
[Install]
WantedBy=multi-user.target
`,
}

// settle makes the machine a node for good, as docs/isolate.md says it: its units are enabled, and nothing is started
// after this by anything but a boot.
func settle(t *testing.T) {
	p := &proof{T: t}
	for name, content := range files {
		write(p, name, content)
	}
	sh(p, "systemctl daemon-reload; systemctl enable underlay peer vllm systemd-networkd systemd-networkd-wait-online; systemctl start underlay systemd-networkd systemd-networkd-wait-online")
	pin := sh(p, vallum+" isolate init lab --dir "+fleetDir+" >/dev/null 2>&1; cat "+fleetDir+"/fleet.pub")
	for dir, config := range map[string]string{here: "/etc/vallum.yaml", there: there + "/vallum.yaml"} {
		p.must("a state folder", os.MkdirAll(dir, 0o700))
		write(p, config, fmt.Sprintf("isolate: {fleet_key: %q, allow: [{name: ssh, port: 22}]}\n", pin))
	}
	sign(p, 1)
	raiseHere(p, inPeer, "--state "+there+" --config "+there+"/vallum.yaml --hosts ''", "--state "+there)
	raiseHere(p, "", "--config /etc/vallum.yaml", "")
	sh(p, "cd /etc && "+vallum+" isolate unit --config vallum.yaml >/etc/systemd/system/vallum-isolate.service")
	sh(p, "mkdir -p /etc/systemd/system/vllm.service.d && "+vallum+" isolate env --config /etc/vallum.yaml --topology dp --format systemd >/etc/systemd/system/vllm.service.d/isolate.conf")
	sh(p, "systemctl daemon-reload; systemctl enable vallum-isolate; "+vallum+" isolate status; cat /proc/sys/kernel/random/boot_id >/var/lib/boot_id")
}

func lastLine(s string) string { return s[strings.LastIndexByte(s, '\n')+1:] }

// sign signs the next manifest and gives it to this node. Each differs from the one before in what the rules let in.
func sign(p *proof, serial int) {
	p.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "format: 1\nfleet: lab\nserial: %d\nexpires: %s\noverlay: [10.99.0.0/24]\napi_port: %d\nnodes:\n", serial, time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339), 8000+serial)
	for i, name := range []string{"a", "b"} {
		dir := map[string]string{"a": here, "b": there}[name]
		key := lastLine(sh(p, vallum+" isolate keygen --state "+dir))
		fmt.Fprintf(&b, "  - {name: %s, public_key: %q, endpoint: \"192.0.2.%d:51820\", addresses: [10.99.0.%d], roles: [vllm]}\n", name, key, i+1, i+1)
	}
	write(p, fleetDir+"/fleet.yaml", b.String())
	sh(p, vallum+" isolate sign --dir "+fleetDir+" && cp "+fleetDir+"/manifest.signed "+here+"/")
	if serial == 1 {
		sh(p, "cp "+fleetDir+"/manifest.signed "+there+"/") // later ones change nothing for b
	}
}

// raiseHere runs up, and confirms it where it asks for that.
func raiseHere(p *proof, prefix, flags, stateFlag string) {
	p.Helper()
	sh(p, `set -e; `+prefix+vallum+` isolate up --accept-cut `+flags+` >/run/up.said 2>&1 & up=$!
until grep -q 'applied; confirm' /run/up.said; do kill -0 $up 2>/dev/null || { wait $up && exit; cat /run/up.said; exit 1; }; sleep .1; done
`+prefix+vallum+` isolate confirm `+stateFlag+`; wait $up || { cat /run/up.said; exit 1; }`)
}

// wantOverlay wants the machine's overlay whole, by the kernel's device, with the peer at its other end.
func wantOverlay(p *proof, serial int) {
	p.Helper()
	if out := sh(p, vallum+" isolate status"); !strings.Contains(out, fmt.Sprintf("serial %d: holds", serial)) || strings.Contains(out, "not confirmed") {
		p.Errorf("status: %s", out)
	}
	if out := sh(p, "ip -d link show vallum0"); !strings.Contains(out, "wireguard") {
		p.Errorf("the device is %s", out)
	}
	if out, err := tried(p.Context(), "pgrep -af '[i]solate tunnel'"); err == nil {
		p.Errorf("a tunnel's process runs: %s", out)
	}
	sh(p, "systemctl is-active peer.service")
	eventually(p, "the peer answers inside", soon, func() bool {
		_, err := tried(p.Context(), vallum+" isolate verify --config /etc/vallum.yaml")
		return err == nil
	})
}

func settled(p *proof, unit string) {
	p.Helper()
	eventually(p, "no unit is being started", 3*time.Minute, func() bool {
		jobs, _ := tried(p.Context(), "systemctl list-jobs --no-legend")
		return !strings.Contains(jobs, ".service")
	})
	if out, _ := tried(p.Context(), "systemctl is-active "+unit); out != "active" {
		said, _ := tried(p.Context(), "journalctl --no-pager -b -o cat -u vallum-isolate -u "+unit+"; ls -la "+here)
		p.Fatalf("%s is %s: %s", unit, out, said)
	}
}

func afterReboot(p *proof) {
	settled(p, "vllm.service")
	if sh(p, "cat /proc/sys/kernel/random/boot_id") == sh(p, "cat /var/lib/boot_id") {
		p.Fatalf("this is the same boot as before")
	}
	said := sh(p, "cat /run/vllm.said")
	for _, want := range []string{"serial 1: holds", "wireguard", "VLLM_HOST_IP is 10.99.0.1"} {
		if !strings.Contains(said, want) {
			p.Errorf("vLLM's unit saw no %q when it was started: %s", want, said)
		}
	}
	settled(p, "peer.service")
	wantOverlay(p, 1)
}

func networkd(p *proof) {
	sh(p, "systemctl restart systemd-networkd && /usr/lib/systemd/systemd-networkd-wait-online --timeout=60 && networkctl reload && ip -br addr show eth0 | grep -q 192.0.2.1")
	routes, _ := tried(p.Context(), "ip route show table all")
	p.Logf("after networkd: %s", routes)
	wantOverlay(p, 1)
}

func beforePowerCut(t *testing.T) {
	p := &proof{T: t}
	sh(p, "cp "+here+"/manifest.signed "+fleetDir+"/older.signed && sync "+fleetDir+"/older.signed")
	sign(p, 2)
	raiseHere(p, "", "--config /etc/vallum.yaml", "")
	fmt.Println(CutPower)
	select {} // until the power is cut
}

func afterPowerCut(p *proof) {
	settled(p, "vllm.service")
	settled(p, "peer.service")
	wantOverlay(p, 2)
	sh(p, "cp "+fleetDir+"/older.signed "+here+"/manifest.signed")
	out, err := tried(p.Context(), vallum+" isolate up --config /etc/vallum.yaml --accept-cut")
	if err == nil || !strings.Contains(strings.Join(strings.Fields(out), " "), "an older manifest than this node has seen") {
		p.Errorf("the older manifest: %v %s", err, out)
	}
	if out := sh(p, vallum+" isolate status"); !strings.Contains(out, "serial 2: holds") {
		p.Errorf("after an older manifest was refused: %s", out)
	}
}
