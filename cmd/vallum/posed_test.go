package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/vallum/vallum/internal/vllmtest"
)

// posedAsVLLM is what this test program does by the name of vllm: a fake that takes what vllm.service gives.
func posedAsVLLM() {
	f := flag.NewFlagSet("vllm", flag.ExitOnError)
	uds, config, model := f.String("uds", "", ""), f.String("config", "", ""), f.String("served-model-name", "", "")
	_, _ = f.Bool("disable-fastapi-docs", false, ""), f.String("fingerprint-mode", "", "")
	_ = f.Parse(os.Args[3:]) // serve MODEL
	b, err := os.ReadFile(*config)
	key, found := strings.CutPrefix(string(b), `api-key: "`)
	l, refused := net.Listen("unix", *uds)
	if err = errors.Join(err, refused); err != nil || !found {
		fmt.Fprintf(os.Stderr, "%v, of %s\n", err, *config)
		os.Exit(1)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as vLLM leaves it
	fake := vllmtest.New(vllmtest.Options{Key: strings.TrimSuffix(key, "\"\n"), Models: []string{*model}, MaxModelLen: 32 << 10, Words: 15, Interval: 100 * time.Millisecond})
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() { <-term; fake.Close() }()
	_ = fake.Serve(l)
}
