package realvllm

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// SignalEngine sends a signal to the processes behind the API server, which
// name themselves VLLM::EngineCore and VLLM::Worker. The API server itself goes
// on, and says 200 on /health whatever happens to them.
func (s *Server) SignalEngine(sig syscall.Signal) error {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	found := 0
	for _, file := range files {
		cmdline, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(cmdline), "VLLM::") {
			continue // gone, or not an engine
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		if group, err := syscall.Getpgid(pid); err != nil || group != s.PID() {
			continue // another server's
		}
		if err := syscall.Kill(pid, sig); err != nil {
			return fmt.Errorf("signalling %q (%d): %w", cmdline, pid, err)
		}
		found++
	}
	if found == 0 {
		return fmt.Errorf("vLLM %s has no engine process", s.Name)
	}
	return nil
}
