package vallum

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
)

// logKeys are the names under which the program logs. One thing has one name, so that a search finds all of it; a new one
// is added here.
var logKeys = []string{
	"after", "cause", "drain", "error", "event", "id", "key_id", "last_from", "max", "message", "models", "name", "next_try", "panic", "per_address", "problem", "reason", "remote",
	"stack", "status", "to", "upstream", "version", "warning",
}

// A log line is found by its message, which is therefore a literal, and its values by their keys.
func TestLogLinesAreConstantWithKeysOfTheList(t *testing.T) {
	snake := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	used := map[string]bool{}
	lines := 0
	for _, p := range packages(t) {
		for _, f := range p.GoFiles {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, f), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || !isLog(call) {
					return true
				}
				lines++
				for i, arg := range call.Args {
					text, literal := literalOf(arg)
					switch {
					case i == 0 && !literal:
						t.Errorf("%s: the message is no literal", fset.Position(arg.Pos()))
					case i%2 == 1 && (!literal || !snake.MatchString(text) || !slices.Contains(logKeys, text)):
						t.Errorf("%s: the key %q is not in logKeys", fset.Position(arg.Pos()), text)
					case i%2 == 1:
						used[text] = true
					}
				}
				return true
			})
		}
	}
	for _, key := range logKeys {
		if !used[key] {
			t.Errorf("nothing is logged under the key %q", key)
		}
	}
	if lines < 20 {
		t.Errorf("%d log lines are found: did their form change?", lines)
	}
}

// isLog reports whether a call writes a log line: Debug, Info, Warn or Error of something that is called log.
func isLog(call *ast.CallExpr) bool {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, method.Sel.Name) {
		return false
	}
	switch of := method.X.(type) {
	case *ast.Ident:
		return of.Name == "log" || of.Name == "Log"
	case *ast.SelectorExpr:
		return of.Sel.Name == "log" || of.Sel.Name == "Log"
	}
	return false
}

func literalOf(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}
