package vallum

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// This file holds that the pages name settings, commands and flags that there are.

var (
	pageSection = regexp.MustCompile("(?m)^## `?([^`\n]+)`?$")
	pageKey     = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|")
	inBackticks = regexp.MustCompile("`([^`\n]+)`")
	dottedName  = regexp.MustCompile(`^([a-z_]+)\.([a-z_]+)(:.*)?$`)
	plainName   = regexp.MustCompile(`^([a-z]+_[a-z_]+)(:.*)?$`)
)

// settings are the keys of docs/config.md, which is made of the configuration's type: as they stand there, such as
// "bodies.max_json", and each alone.
func settings(t *testing.T) (names, sections map[string]bool) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("docs", "config.md"))
	if err != nil {
		t.Fatal(err)
	}
	names, sections = map[string]bool{}, map[string]bool{}
	heads := pageSection.FindAllStringSubmatchIndex(string(b), -1)
	for i, at := range heads {
		end := len(b)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		section := strings.TrimSuffix(string(b[at[2]:at[3]]), "[]")
		sections[section] = true
		for _, key := range pageKey.FindAllStringSubmatch(string(b[at[1]:end]), -1) {
			names[key[1]], names[section+"."+key[1]] = true, true
		}
	}
	if !names["bodies.max_json"] || !names["probes"] || len(names) < 60 {
		t.Fatalf("docs/config.md: found %q: did its form change?", slices.Sorted(maps.Keys(names)))
	}
	return names, sections
}

// handWritten are the pages for people that no code makes, and the table of reasons, whose words are written by hand.
func handWritten(t *testing.T) map[string]string {
	t.Helper()
	names := []string{"README.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/threat-model.md", "docs/decisions.md", "docs/reasons.md", "docs/audit.md"}
	examples, err := filepath.Glob("examples/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, name := range append(names, examples...) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		pages[name] = string(b)
	}
	return pages
}

// A dotted name whose first part is a section of the configuration has to be a key of it. What the table of reasons tells
// the operator to change has to be there also where it stands alone.
func TestPagesNameSettingsThatThereAre(t *testing.T) {
	known, sections := settings(t)
	for page, text := range handWritten(t) {
		for _, m := range inBackticks.FindAllStringSubmatch(text, -1) {
			if name := dottedName.FindStringSubmatch(m[1]); name != nil && sections[name[1]] && !known[name[1]+"."+name[2]] {
				t.Errorf("%s names the setting %s, and docs/config.md has no such key", page, m[1])
			}
		}
	}
	named := 0
	for line := range strings.Lines(handWritten(t)["docs/reasons.md"]) {
		cells := strings.Split(line, "|")
		if len(cells) < 6 {
			continue
		}
		for _, m := range inBackticks.FindAllStringSubmatch(cells[4], -1) { // what it means for the operator
			if name := plainName.FindStringSubmatch(m[1]); name != nil {
				named++
				if !known[name[1]] {
					t.Errorf("docs/reasons.md tells the operator of %s, and docs/config.md has no such key", m[1])
				}
			}
		}
	}
	if named < 5 {
		t.Errorf("docs/reasons.md names %d settings: did its form change?", named)
	}
}

// Every `vallum …` in the text of a page is a command, with flags that it has.
func TestPagesNameCommandsAndFlagsThatThereAre(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("docs", "commands.md"))
	if err != nil {
		t.Fatal(err)
	}
	commands := map[string]string{} // "vallum keys list" → what is said of it
	var current string
	for line := range strings.Lines(string(b)) {
		if heading := strings.TrimSpace(strings.TrimLeft(line, "#")); strings.HasPrefix(line, "#") {
			current = heading
		}
		commands[current] += line
	}
	for page, text := range handWritten(t) {
		if page == "docs/decisions.md" { // which tells of what was decided against, too
			continue
		}
		for _, m := range inBackticks.FindAllStringSubmatch(text, -1) {
			if !strings.HasPrefix(m[1], "vallum ") {
				continue
			}
			words := strings.Fields(m[1])
			about, depth := "", 0
			for n := 2; n <= len(words); n++ {
				if text, ok := commands[strings.Join(words[:n], " ")]; ok {
					about, depth = text, n
				}
			}
			if depth == 0 && !slices.Contains([]string{"help", "completion"}, words[1]) {
				t.Errorf("%s names `%s`, and docs/commands.md has no such command", page, m[1])
			}
			for _, word := range words[depth:] {
				if flag, _, _ := strings.Cut(word, "="); depth > 0 && strings.HasPrefix(flag, "--") && !strings.Contains(about, flag+" ") {
					t.Errorf("%s names `%s`, and the command has no %s", page, m[1], flag)
				}
			}
		}
	}
}

// A page that names a file of the tree names one that is there; doc.go too, whose five files a newcomer reads first.
func TestPagesNameFilesThatThereAre(t *testing.T) {
	pages := handWritten(t)
	b, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	pages["doc.go"] = string(b)
	path := regexp.MustCompile("(?:^|[\\s`(])((?:internal|cmd|conformance|tools|docs|examples|testdata)/[A-Za-z0-9_./-]*[A-Za-z0-9_]\\.(?:go|md|json|py|txt|yaml|sh|mod|golden))\\b")
	named := 0
	for page, text := range pages {
		for _, m := range path.FindAllStringSubmatch(text, -1) {
			named++
			beside := filepath.Join(filepath.Dir(page), m[1])
			if _, err := os.Stat(m[1]); err == nil {
				continue
			}
			if _, err := os.Stat(beside); err != nil {
				t.Errorf("%s names the file %s, which is not there", page, m[1])
			}
		}
	}
	if named < 20 {
		t.Errorf("%d files are named: did the form of the pages change?", named)
	}
}

// The table of packages has every one of the first level, so that a newcomer finds what is below.
func TestThePackagesAreInTheTable(t *testing.T) {
	page := handWritten(t)["ARCHITECTURE.md"]
	entries, err := os.ReadDir("internal")
	if err != nil || len(entries) < 20 {
		t.Fatalf("%d packages, %v", len(entries), err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.Contains(page, "["+e.Name()+"](internal/"+e.Name()+")") {
			t.Errorf("ARCHITECTURE.md has no row for internal/%s", e.Name())
		}
	}
}
