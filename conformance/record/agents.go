package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// agent runs a coding agent once, not interactively, in an empty folder.
func agent(name, binary string, args func(base string) (command, env []string)) func(context.Context, string) error {
	return func(ctx context.Context, base string) error {
		out, err := exec.CommandContext(ctx, binary, "--version").Output()
		if err != nil {
			return fmt.Errorf("%s --version: %w", name, err)
		}
		version := regexp.MustCompile(`\d+\.\d+\.\d+`).Find(out)
		dir, err := os.MkdirTemp("", "record-work-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		command, env := args(fmt.Sprintf("%s/%s/%s/once", base, name, version))
		return runCommand(ctx, dir, env, append([]string{binary}, command...)...)
	}
}

func aiderArgs(base string) (command, env []string) {
	return []string{"--model", "openai/tiny", "--message", "say hello", "--yes-always", "--no-git", "--no-analytics", "--no-check-update", "--no-show-model-warnings", "--no-gitignore"},
		[]string{"OPENAI_API_BASE=" + base + "/v1", "OPENAI_API_KEY=key"}
}

func codexArgs(base string) (command, env []string) {
	return []string{
		"exec", "--skip-git-repo-check", "-m", "tiny",
		"-c", `model_provider="rec"`, "-c", fmt.Sprintf(`model_providers.rec={name="rec",base_url="%s/v1",env_key="REC_KEY",wire_api="responses"}`, base),
		"say hello",
	}, []string{"REC_KEY=key"}
}

func claudeArgs(base string) (command, env []string) {
	return []string{"-p", "say hello", "--model", "tiny"}, []string{
		"ANTHROPIC_BASE_URL=" + base, "ANTHROPIC_API_KEY=key", "DISABLE_TELEMETRY=1", "DISABLE_ERROR_REPORTING=1", "DISABLE_AUTOUPDATER=1",
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1",
	}
}

// vllmBench runs `vllm bench serve` over both generating endpoints.
func vllmBench(binary, model string) func(context.Context, string) error {
	return func(ctx context.Context, base string) error {
		version := filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(binary))))
		version = regexp.MustCompile(`\d+\.\d+\.\d+`).FindString(version)
		for _, endpoint := range []struct{ backend, path, name string }{
			{"openai", "/v1/completions", "completions"}, {"openai-chat", "/v1/chat/completions", "chat"},
		} {
			err := runCommand(ctx, ".", []string{"HF_HUB_OFFLINE=1", "OPENAI_API_KEY=key", "VLLM_NO_USAGE_STATS=1"}, binary, "bench", "serve",
				"--backend", endpoint.backend, "--endpoint", endpoint.path, "--base-url", base+"/vllm-bench/"+version+"/"+endpoint.name,
				"--model", "tiny", "--tokenizer", model, "--dataset-name", "random", "--random-input-len", "16", "--random-output-len", "4",
				"--num-prompts", "1", "--ignore-eos")
			if err != nil {
				return err
			}
		}
		return nil
	}
}
