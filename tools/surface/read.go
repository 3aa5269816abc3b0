package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// scripts is the reader: Python's standard library only, because only Python parses all of Python.
//
//go:embed py/*.py
var scripts embed.FS

// read runs the reader over a release's files and gives back its JSON.
func read(ctx context.Context, python string, r release) ([]byte, error) {
	folder, err := os.MkdirTemp("", "surface-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	if err := os.CopyFS(folder, scripts); err != nil {
		return nil, err
	}
	// -I: nothing of the caller's environment or folder is imported; -B: nothing is written beside the scripts.
	cmd := exec.CommandContext(ctx, python, "-I", "-B", filepath.Join(folder, "py", "main.py"),
		"--root", r.Root, "--release", r.Version, "--wheel", r.Wheel, "--hosting", r.Hosting,
		"--installed", strings.Join(r.Needs, ","))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("reading %s: %w: %s", r.Wheel, err, lastLine(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// surface is what a file holds, as far as this program looks at it; internal/vllm/surface documents all of it.
type surface struct {
	Release         string           `json:"release"`
	GuardedPrefixes []string         `json:"guarded_prefixes"`
	Routes          []route          `json:"routes"`
	Models          map[string]model `json:"models"`
	Unresolved      []struct{ Kind, At, Text string }
}

type route struct {
	Server       string   `json:"server"`
	Method       string   `json:"method"`
	Path         string   `json:"path"`
	Conditions   []string `json:"conditions"`
	GuardedByKey bool     `json:"guarded_by_key"`
	RequestModel string   `json:"request_model"`
	RequestKind  string   `json:"request_kind"`
	Query        []string `json:"query"`
	Headers      []string `json:"headers"`
}

type model struct {
	Kind     string   `json:"kind"`
	Extra    string   `json:"extra"`
	Members  []string `json:"members"`
	AlsoRead []string `json:"also_reads"`
	Fields   []field  `json:"fields"`
}

type field struct {
	Name       string   `json:"name"`
	Annotation string   `json:"annotation"`
	Default    *string  `json:"default"`
	Required   bool     `json:"required"`
	Aliases    []string `json:"aliases"`
	Bounds     string   `json:"bounds"`
}

func parse(text []byte) (surface, error) {
	var s surface
	if err := json.Unmarshal(text, &s); err != nil {
		return s, err
	}
	if s.Release == "" || len(s.Routes) == 0 {
		return s, fmt.Errorf("no release or no routes in it")
	}
	return s, nil
}
