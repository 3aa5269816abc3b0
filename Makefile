# make help lists the targets. Only Go is needed for build and test; conformance installs what it needs by itself.
GO      ?= go
# grpcnotrace and no html/template: both keep the linker's dead-code elimination on.
TAGS    ?= grpcnotrace
VERSION ?=
# The race detector needs cgo, so a C compiler. Where there is none the tests say so and run without it.
RACE    := $(shell command -v $${CC:-cc} >/dev/null 2>&1 && echo -race)

.PHONY: help build test lint conformance bench bench-isolate fuzz golden surface cross arm64

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/vallum, stripped
	$(GO) build -trimpath -tags $(TAGS) -ldflags '-s -w' -o bin/vallum ./cmd/vallum

test: ## unit, script, seed and tree tests; needs only Go
	@if [ -z "$(RACE)" ]; then echo "no C compiler found: the race pass is NOT RUN"; [ -z "$$CI" ]; fi
	@$(MAKE) --no-print-directory -j2 plain raced

# Side by side: isolate's tests in network namespaces wait for what does not come, and leave the cores to the others.
plain:
	$(GO) test -shuffle=on -timeout 5m ./...

raced:
	@if [ -n "$(RACE)" ]; then $(GO) test $(RACE) -shuffle=on -timeout 5m $(RACED); fi

# The packages in which requests run side by side; the rest is pure.
RACED = ./internal/http1 ./internal/gateway ./internal/forward ./internal/limit ./internal/authn ./internal/audit ./internal/upstream ./internal/daemon ./internal/meter

lint: cross ## vet, staticcheck, errcheck, gofumpt, deadcode; govulncheck where its database is reached
	$(GO) vet ./...
	./tools/lint.sh

cross: ## what runs elsewhere builds and vets: linux/arm64, macOS, Windows
	GOOS=linux GOARCH=arm64 $(GO) vet ./...
	GOOS=darwin GOARCH=arm64 $(GO) vet ./...
	GOOS=windows GOARCH=amd64 $(GO) vet ./...

conformance: ## against the real vLLM, its clients and nginx; installs them into a cache outside the tree
	$(GO) -C conformance run ./install
	$(GO) -C conformance test -count=1 ./...
	$(GO) -C conformance test -tags conformance -count=1 -timeout 50m -v .

# The emulator runs one process, and has not every kind of socket: these tests start another, or need one of those.
BEYOND  = TestKill9LosesNothingThatWasAcknowledged|TestARealWriteThatFails|TestNoArrivalWithoutARecordWhateverKillsTheProcess|TestWithAFullDiskNothingIsForwarded|TestARealSecondProcess|TestNothingThatCrossedTheWireIsPassedOver|TestWhatCrossesTheOverlaysDeviceIsInside|TestAPacketThatWasNotSeenWholeIsLost

arm64: ## every package's tests as linux/arm64, emulated instruction by instruction: 10 minutes; conformance runs the quick ones
	$(GO) -C conformance run ./install -only qemu-user-static
	GOOS=linux GOARCH=arm64 CGO_ENABLED=0 $(GO) test -count=1 -timeout 20m -tags $(TAGS) -skip '^($(BEYOND))$$' \
		-exec "$$($(GO) -C conformance run ./install -list | awk '$$1 == "qemu-user-static" {print $$4}')/root/usr/bin/qemu-aarch64-static" \
		$$($(GO) list ./internal/... | grep -v /isolate/apply)

bench: ## nginx, a stdlib proxy and Vallum side by side: CPU per request as a ratio
	$(GO) -C conformance run ./bench

bench-isolate: ## the overlay and the bare path in turn, between two namespaces: network, and decode steps of the real vLLM; root
	$(GO) -C conformance run ./isobench

# Up to Go 1.26 the fuzzer's own clock can fail a target in which no input did, one that does nothing too (golang/go#75804).
fuzz: ## every fuzz target for FUZZTIME (default 60s)
	@for pkg in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz); do \
		echo "$$pkg $$f"; if ! out=$$($(GO) test -timeout 0 -run xxx -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-60s} $$pkg 2>&1); then echo "$$out"; \
		case "$$out" in *"Failing input written"*) exit 1;; *"context deadline exceeded"*) echo "no input failed: golang/go#75804";; *) exit 1;; esac; fi; done; done

golden: ## rewrite generated documents and golden files; look at the difference before you commit it
	$(GO) test $$(git grep -l 'flag.Bool("update"' -- 'cmd/*_test.go' 'internal/*_test.go' | xargs -n1 dirname | sort -u | sed 's|^|./|') -update

surface: ## VERSION=0.32.0: read what a vLLM release serves and reads, without running it
	$(GO) -C tools run ./surface -version $(VERSION) -out ../internal/vllm/surface/$(VERSION).json
