package apply

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/fleet"
	"github.com/vallum/vallum/internal/isolate/tunnel"
)

// State is the folder (0700) in which a node keeps its key and what it has applied. Who can write it can write the
// network of this machine.
type State struct {
	Dir     string
	Program string // this binary, for the processes that outlive a command
}

// KeyFile is where the node's key lies.
func (s State) KeyFile() string { return filepath.Join(s.Dir, "node.key") }

// SeenFile remembers the newest manifest.
func (s State) SeenFile() string { return filepath.Join(s.Dir, "seen.json") }

// PresharedDir holds NAME.key for each peer that has a pre-shared key.
func (s State) PresharedDir() string { return filepath.Join(s.Dir, "preshared") }

func (s State) keys() tunnel.Keys {
	return tunnel.Keys{Node: s.KeyFile(), Preshared: s.PresharedDir()}
}

func (s State) file(name string) string { return filepath.Join(s.Dir, name) }

const (
	confirmedFile = "confirmed.json" // what a reboot restores and a rollback returns to
	pendingFile   = "pending.json"   // there from before the first change until it is confirmed or rolled back
)

// record is a plan that was applied, or is about to be.
type record struct {
	Plan     *isolate.Plan `json:"plan"`
	Hosts    string        `json:"hosts"`             // the hosts file that was written
	Token    string        `json:"token,omitempty"`   // of the up that wrote it: its agent knows it by that
	Deadline time.Time     `json:"deadline,omitzero"` // of a pending one
}

// changes is the part of the plan that changes a machine; what it only tells differs from day to day.
func changes(p *isolate.Plan) *isolate.Plan {
	c := *p
	c.Cuts, c.Warnings, c.NotProtected, c.Serial, c.Kernel = nil, nil, nil, 0, false
	// How much fits through is found anew each time, and keeps nobody out whatever it is: to confirm it would only make
	// the first up after a boot wait for somebody who is not there.
	c.MTU, c.Peers = 0, slices.Clone(c.Peers)
	for i := range c.Peers {
		c.Peers[i].Path = isolate.Path{}
	}
	return &c
}

// same reports whether applying b after a changes nothing.
func same(a, b *isolate.Plan) bool {
	return a != nil && b != nil && reflect.DeepEqual(normal(changes(a)), normal(changes(b)))
}

// normal is the plan as it comes out of its file, so that nil and empty are one.
func normal(p *isolate.Plan) string {
	b, err := json.Marshal(p)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// read returns nil when there is no such record, or when it waits no longer: whoever confirmed was killed, or lost power,
// before what was pending was removed. One that cannot be read is an error: guessing would leave something behind.
func (s State) read(name string) (*record, error) {
	r, err := s.readFile(name)
	if err != nil || r == nil || name != pendingFile {
		return r, err
	}
	confirmed, err := s.readFile(confirmedFile)
	if err != nil || confirmed != nil && r.Token != "" && confirmed.Token == r.Token {
		return nil, err
	}
	return r, nil
}

func (s State) readFile(name string) (*record, error) {
	b, err := os.ReadFile(s.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the applied plan: %w", err)
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil || r.Plan == nil {
		return nil, fmt.Errorf("%s is not an applied plan: %w", s.file(name), errors.Join(err, errors.New("restore it, or remove by hand what vallum isolate plan shows")))
	}
	return r, nil
}

func (s State) write(name string, r *record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return fleet.WriteWhole(s.file(name), append(b, '\n'))
}

func (s State) remove(name string) error {
	if err := os.Remove(s.file(name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Applied is the plan that holds now: a pending one before a confirmed one; nil when there is none.
func (s State) Applied() (p *isolate.Plan, confirmed bool, err error) {
	r, confirmed, err := s.appliedRecord()
	return planOf(r), confirmed, err
}

func (s State) appliedRecord() (r *record, confirmed bool, err error) {
	r, err = s.read(pendingFile)
	if err != nil || r != nil {
		return r, false, err
	}
	r, err = s.read(confirmedFile)
	return r, true, err
}

func planOf(r *record) *isolate.Plan {
	if r == nil {
		return nil
	}
	return r.Plan
}

// Open makes the folder if it is not there, and refuses one that others may enter.
func (s State) Open() error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("making the state folder: %w", err)
	}
	info, err := os.Stat(s.Dir)
	if err != nil {
		return fmt.Errorf("looking at the state folder: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("state folder %q has mode %04o; chmod 700", s.Dir, info.Mode().Perm())
	}
	return nil
}

// lock waits for the lock until the deadline. Only one process changes the machine at a time.
func (s State) lock(wait time.Duration) (unlock func(), err error) {
	f, err := os.OpenFile(s.file("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the state folder: %w", err)
	}
	for end := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if time.Now().After(end) {
			return nil, errors.Join(errors.New("another vallum isolate is at work on this machine; wait for it"), f.Close())
		}
	}
}
