package nodes

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// taskGrace is how long a task has to end after SIGTERM.
const taskGrace = 10 * time.Second

// Task is a program that runs inside a node until it is stopped. It writes to a log, and reads what In is given.
type Task struct {
	In     io.WriteCloser
	Log    string // file with its output and errors
	cmd    *exec.Cmd
	exited chan struct{}
}

// Launch starts a task whose log is NAME.log in the node's folder.
func (n *Node) Launch(name string, c *exec.Cmd) (*Task, error) {
	t := &Task{Log: filepath.Join(n.Dir, name+".log"), cmd: c, exited: make(chan struct{})}
	log, err := os.Create(t.Log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	if t.In, err = c.StdinPipe(); err != nil {
		return nil, err
	}
	if err := n.Start(c); err != nil {
		return nil, fmt.Errorf("starting %s on %s: %w", name, n.Name, err)
	}
	go func() {
		_ = c.Wait() // the status is the ProcessState's
		close(t.exited)
	}()
	return t, nil
}

// Exited is closed when the task has ended.
func (t *Task) Exited() <-chan struct{} { return t.exited }

// Code is the exit status of a task that has ended, -1 when a signal ended it.
func (t *Task) Code() int {
	<-t.exited
	return t.cmd.ProcessState.ExitCode()
}

// PID is the task's process, and its group.
func (t *Task) PID() int { return t.cmd.Process.Pid }

// Said is all that the task has written so far.
func (t *Task) Said() string {
	b, err := os.ReadFile(t.Log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// WaitFor waits until the task has written the text; the error says what it wrote instead.
func (t *Task) WaitFor(text string, wait time.Duration) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(wait); ; {
		if strings.Contains(t.Said(), text) {
			return nil
		}
		select {
		case <-t.exited:
			if strings.Contains(t.Said(), text) {
				return nil
			}
			return fmt.Errorf("it ended (%v) before it said %q: %s", t.cmd.ProcessState, text, tail(t.Said()))
		case <-end:
			return fmt.Errorf("it did not say %q within %s: %s", text, wait, tail(t.Said()))
		case <-tick.C:
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-3000):] }

// Stop ends the task's whole process group: SIGTERM, then SIGKILL. It may be called more than once.
func (t *Task) Stop() {
	group := -t.PID()
	_ = syscall.Kill(group, syscall.SIGTERM)
	select {
	case <-t.exited:
	case <-time.After(taskGrace):
	}
	_ = syscall.Kill(group, syscall.SIGKILL)
	<-t.exited
	_ = t.In.Close()
}
