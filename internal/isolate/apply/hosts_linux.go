package apply

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	hostsBegin = "# begin vallum isolate: written by it, removed by it"
	hostsEnd   = "# end vallum isolate"
)

// writeHosts puts our lines into the hosts file, in place of those that it wrote before; none removes them. Everything
// else in the file stays as it is, byte for byte. A file of "" is left alone.
func writeHosts(file string, lines []string) error {
	if file == "" {
		return nil
	}
	old, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && len(lines) == 0 {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the hosts file: %w", err)
	}
	text, err := withHosts(string(old), lines)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if text == string(old) {
		return nil
	}
	if err := replaceFile(file, text); err != nil {
		return fmt.Errorf("writing the hosts file: %w", err)
	}
	return nil
}

// withHosts is the text with our part replaced.
func withHosts(text string, lines []string) (string, error) {
	before, rest, found := strings.Cut(text, hostsBegin+"\n")
	if found {
		_, after, ended := strings.Cut(rest, hostsEnd+"\n")
		if !ended {
			return "", fmt.Errorf("our part has a beginning and no end; remove the line %q by hand", hostsBegin)
		}
		text = before + after
	}
	if len(lines) == 0 {
		return text, nil
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + hostsBegin + "\n" + strings.Join(lines, "\n") + "\n" + hostsEnd + "\n", nil
}

// replaceFile writes a file anew in one step, with the mode and owner that it had. In containers the hosts file is a
// mount, which cannot be replaced, only overwritten.
func replaceFile(file, text string) error {
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(file); err == nil {
		mode = info.Mode().Perm()
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".vallum-hosts-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	err = os.Rename(f.Name(), file)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EXDEV) {
		return os.WriteFile(file, []byte(text), mode)
	}
	return err
}
