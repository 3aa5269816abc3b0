package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// modules are the files of a kernel, by the names by which they are asked for.
type modules struct {
	dir   string              // lib/modules/RELEASE
	needs map[string][]string // file to the files that it needs, from modules.dep
	files map[string]string   // name to file
}

// readModules reads modules.dep of a kernel's folder.
func readModules(dir string) (*modules, error) {
	b, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	m := &modules{dir: dir, needs: map[string][]string{}, files: map[string]string{}}
	for line := range strings.Lines(string(b)) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		m.needs[file] = strings.Fields(needs)
		name := strings.TrimSuffix(filepath.Base(file), ".ko")
		m.files[strings.ReplaceAll(name, "-", "_")] = file
	}
	return m, nil
}

// order is the files of the named modules and of all that they need, each after what it needs.
func (m *modules) order(names ...string) ([]string, error) {
	var out []string
	for _, name := range names {
		file, ok := m.files[name]
		if !ok {
			return nil, fmt.Errorf("the kernel in %q has no module %q", m.dir, name)
		}
		// modules.dep names what has to be loaded first last.
		for _, need := range slices.Backward(m.needs[file]) {
			if !slices.Contains(out, need) {
				out = append(out, need)
			}
		}
		if !slices.Contains(out, file) {
			out = append(out, file)
		}
	}
	return out, nil
}
