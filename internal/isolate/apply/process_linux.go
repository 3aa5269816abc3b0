package apply

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/isolate"
	"github.com/vallum/vallum/internal/isolate/tunnel"
)

// tunnelLock is held by the supervisor for as long as it lives, with its process id inside.
const tunnelLock = "tunnel.lock"

// Tunnel runs the userspace tunnel: the supervisor, or with child what it starts again whenever it ends.
func Tunnel(ctx context.Context, s State, child bool) error {
	// The child's death signal hangs on the thread that started it.
	runtime.LockOSThread()
	if child {
		p, _, err := s.Applied()
		if err != nil {
			return err
		}
		if p == nil {
			return errors.New("no plan is applied; vallum isolate up starts the tunnel")
		}
		if err := portFree(p.Port, time.Second); err != nil {
			return err // before there is a device, which would stand without it
		}
		return tunnel.Serve(ctx, p, s.keys(), func() {})
	}
	f, err := os.OpenFile(s.file(tunnelLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.New("a tunnel runs already")
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return err
	}
	return s.supervise(ctx)
}

// tunnelPID is the supervisor's process id; 0 when none runs. The lock says that it lives, so that the number cannot be
// that of another process.
func (s State) tunnelPID() (int, error) {
	f, err := os.OpenFile(s.file(tunnelLock), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return 0, nil
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 2 {
		return 0, fmt.Errorf("%s is held by a process that has not written its id", f.Name())
	}
	return pid, nil
}

func (s State) tunnelRuns() bool {
	pid, err := s.tunnelPID()
	return err == nil && pid != 0
}

// startTunnel starts the supervisor, if none runs, and waits until the overlay is up.
func (s State) startTunnel(p *isolate.Plan) error {
	log, err := os.OpenFile(s.file("tunnel.log"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	ended := make(chan error, 1)
	if s.tunnelRuns() {
		if err := soon(3*time.Second, func() error { return stranger(p) }); err != nil {
			return err
		}
	} else {
		if err := portFree(p.Port, 3*time.Second); err != nil {
			return err
		}
		c, wait := s.tunnelCommand(log)
		if err := c.Start(); err != nil {
			return fmt.Errorf("starting the tunnel: %w", err)
		}
		go func() {
			if err := c.Wait(); wait || err != nil {
				ended <- err
			}
		}()
	}
	for end := time.Now().Add(15 * time.Second); ; {
		err := errors.New("its process does not run")
		if s.tunnelRuns() {
			err = errors.Join(tunnel.Configure(p, s.keys()), s.carried(p))
		}
		if err == nil {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("the tunnel's process ended: %w: %s", err, tail(log.Name()))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("the tunnel does not come up: %w: %s", err, tail(log.Name()))
		}
	}
}

// portFree waits until nobody has the port, as a tunnel that was killed a moment ago may. wireguard-go says nothing of a
// port that it does not get: the device is there then, and no packet comes.
func portFree(port uint16, wait time.Duration) error {
	for end := time.Now().Add(wait); ; time.Sleep(50 * time.Millisecond) {
		taken := false
		for _, family := range []string{"udp4", "udp6"} {
			c, err := net.ListenUDP(family, &net.UDPAddr{Port: int(port)})
			if err == nil {
				err = c.Close()
			}
			taken = taken || errors.Is(err, unix.EADDRINUSE)
		}
		if !taken {
			return nil
		}
		if time.Now().After(end) {
			return tunnel.PortTaken(port)
		}
	}
}

// tunnelCommand starts the supervisor, or has systemd start it as a unit of its own, so that it outlives the session or the
// unit that it is started from; wait says that the command lives as long as the tunnel.
func (s State) tunnelCommand(log *os.File) (c *exec.Cmd, wait bool) {
	args := []string{s.Program, "isolate", "tunnel", "--state", s.Dir}
	if run, ok := systemdRun(); ok {
		c = exec.Command(run, append([]string{
			"--quiet", "--collect", "--service-type=exec", "--property=StandardError=append:" + log.Name(), "--description=The tunnel of vallum isolate", "--",
		}, args...)...)
		c.Stderr = log
		return c, false
	}
	c = exec.Command(args[0], args[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Dir, c.Stdout, c.Stderr = "/", log, log
	return c, true
}

func tail(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-400):]))
}

// stopTunnel ends the supervisor, and with it the tunnel and its device.
func (s State) stopTunnel() error {
	pid, err := s.tunnelPID()
	if err != nil || pid == 0 {
		return err
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("ending the tunnel's process %d: %w", pid, err)
		}
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if !s.tunnelRuns() {
				return nil
			}
		}
	}
	return fmt.Errorf("the tunnel's process %d does not end", pid)
}
