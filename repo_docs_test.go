package vallum

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// This file holds what the hand-written pages say of the code.

// sources reads every Go file and script of the tree, by its path.
func sources(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == ".git" || d.Name() == "node_modules" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, ".txtar") {
			return nil
		}
		b, err := os.ReadFile(path)
		files[filepath.ToSlash(path)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

var (
	pageTest = regexp.MustCompile("`([a-z/]+)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	rootTest = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`")
)

// A page names a test as `package.TestName`, or `TestName` for one at the top of the tree. A guard whose test was
// renamed or removed is a claim without a proof.
func TestInvariantsNameTheirTests(t *testing.T) {
	files := sources(t)
	has := func(dir, name string) bool {
		for path, text := range files {
			if strings.HasSuffix(path, "_test.go") && filepath.ToSlash(filepath.Dir(path)) == dir && strings.Contains(text, "\nfunc "+name+"(") {
				return true
			}
		}
		return false
	}
	dirOf := func(pkg string) string {
		for _, dir := range []string{"internal/" + pkg, pkg, "cmd/" + pkg} {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				return dir
			}
		}
		return "internal/" + pkg
	}
	for _, page := range []string{"README.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md", "docs/threat-model.md", "docs/decisions.md"} {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			continue
		}
		named := 0
		for _, m := range pageTest.FindAllStringSubmatch(string(b), -1) {
			named++
			if !has(dirOf(m[1]), m[2]) {
				t.Errorf("%s names %s.%s, and there is no such test", page, m[1], m[2])
			}
		}
		for _, m := range rootTest.FindAllStringSubmatch(string(b), -1) {
			named++
			if !has(".", m[1]) {
				t.Errorf("%s names %s, and the top of the tree has no such test", page, m[1])
			}
		}
		if named == 0 && (page == "ARCHITECTURE.md" || page == "docs/threat-model.md") {
			t.Errorf("%s names no test: did its form change?", page)
		}
	}
}

// Every row of a table of guards names what holds it, or says that nothing does yet.
func TestEveryInvariantHasATestOrSaysThatItHasNone(t *testing.T) {
	for page, heading := range map[string]string{"ARCHITECTURE.md": "| invariant |", "docs/threat-model.md": "| attack |"} {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		rows, in := 0, false
		for _, line := range strings.Split(string(b), "\n") {
			switch {
			case strings.HasPrefix(line, heading):
				in = true
			case !strings.HasPrefix(line, "|"):
				in = false
			case in && !strings.HasPrefix(line, "|---"):
				rows++
				if !pageTest.MatchString(line) && !rootTest.MatchString(line) && !strings.Contains(line, "not shown yet") && !strings.Contains(line, "not held") {
					t.Errorf("%s: no test, no \"not shown yet\", no \"not held\": %s", page, line)
				}
			}
		}
		if rows == 0 {
			t.Errorf("%s has no table that begins with %q", page, heading)
		}
	}
}

// One word of refusal, everywhere: each reason is documented, given by some stage, and asserted by some test.
func TestEveryReasonIsDocumentedUsedAndTested(t *testing.T) {
	const table = "internal/verdict/reasons.go"
	file, err := parser.ParseFile(token.NewFileSet(), table, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := codesOf(file)
	if len(codes) < 30 {
		t.Fatalf("%s: found %d reasons: did its form change?", table, len(codes))
	}
	page, err := os.ReadFile("docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	files := sources(t)
	for name, code := range codes {
		if !strings.Contains(string(page), "\n| `"+code+"` |") {
			t.Errorf("docs/reasons.md has no row for %s", code)
		}
		given := regexp.MustCompile(`\bverdict\.` + name + `\b`)
		asserted := regexp.MustCompile(given.String() + `|"` + code + `"`)
		script := regexp.MustCompile(`\b` + code + `\b`)
		used, tested := name == "Unanswered", false // nobody gives it: it is what a stage that forgets gives
		for path, text := range files {
			if path == "internal/verdict/outcome.go" { // an end in the middle of an answer has its reason there
				used = used || strings.Contains(text, "\t\treturn "+name+"\n")
			}
			if strings.HasPrefix(path, "internal/verdict/") || path == "repo_docs_test.go" {
				continue
			}
			switch {
			case strings.HasSuffix(path, ".txtar"):
				tested = tested || script.MatchString(text)
			case strings.HasSuffix(path, "_test.go"):
				tested = tested || asserted.MatchString(text)
			default:
				used = used || given.MatchString(text)
			}
		}
		if !used {
			t.Errorf("no stage gives %s: take it out of the table, or use it", name)
		}
		if !tested {
			t.Errorf("no test asserts %s", name)
		}
	}
}

// codesOf reads the names and codes of the reasons from the keys of the table: Name: {"code", …}.
func codesOf(file *ast.File) map[string]string {
	codes := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		pair, ok := n.(*ast.KeyValueExpr)
		if !ok {
			return true
		}
		key, named := pair.Key.(*ast.Ident)
		row, composite := pair.Value.(*ast.CompositeLit)
		if !named || !composite || len(row.Elts) == 0 {
			return true
		}
		if code, ok := row.Elts[0].(*ast.BasicLit); ok && code.Kind == token.STRING {
			codes[key.Name] = strings.Trim(code.Value, `"`)
		}
		return true
	})
	return codes
}

// The budgets of ARCHITECTURE.md are those that are held.
func TestBudgetsAreThoseOfThePage(t *testing.T) {
	b, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "\n## Budgets\n")
	text := strings.NewReplacer(",", "", "\n", " ").Replace(section)
	for what, n := range map[string]int{"Function ≤ %d ": maxFunctionLines, "file ≤ %d ": maxFileLines, "package ≤ %d ": maxPackageLines, "`main.go` ≤ %d ": maxMainLines, "core ≤ %d.": maxDataPathLines} {
		if want := fmt.Sprintf(what, n); !strings.Contains(text, want) {
			t.Errorf("ARCHITECTURE.md does not say %q", want)
		}
	}
}

// The figures of README's text are those of the tree and of the page that it names.
func TestReadmeCountsWhatThereIs(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), "\n", " ")
	surfaces, err := filepath.Glob("internal/vllm/surface/[0-9]*.json")
	if err != nil {
		t.Fatal(err)
	}
	recordings, err := filepath.Glob("testdata/clients/*.json")
	if err != nil {
		t.Fatal(err)
	}
	clients := map[string]bool{}
	for _, name := range recordings {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var r struct{ Client string }
		if err := json.Unmarshal(b, &r); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		clients[r.Client] = true
	}
	model, err := os.ReadFile("docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	need := regexp.MustCompile(`\| (\d+) need something`).FindStringSubmatch(string(model))
	all := regexp.MustCompile(`(?m)^(\d+) entries about vLLM`).FindStringSubmatch(string(model))
	if need == nil || all == nil {
		t.Fatal("docs/threat-model.md counts no advisories: did its form change?")
	}
	for _, want := range []string{
		fmt.Sprintf("What %d clients really send", len(clients)), fmt.Sprintf("checked against %d releases", len(surfaces)),
		fmt.Sprintf("Of %s published advisories %s need something", all[1], need[1]),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("README.md does not say %q", want)
		}
	}
}

// The independent verifier of the records stays what one reads in a sitting.
func TestTheIndependentVerifierIsSmall(t *testing.T) {
	b, err := os.ReadFile("internal/audit/testdata/verify.py")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n > 80 {
		t.Errorf("it has %d lines, more than 80", n)
	}
}

// The hand-written pages exist and link to files that exist.
func TestPagesLinkToWhatIsThere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	pages := []string{"README.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/threat-model.md", "docs/decisions.md"}
	examples, err := filepath.Glob("examples/*/README.md")
	if err != nil || len(examples) < 2 {
		t.Fatalf("examples: %q, %v", examples, err)
	}
	for _, page := range slices.Concat(pages, examples) {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			}
		}
	}
}
