#!/bin/sh
# Runs the pinned tools over the product, the conformance module and the tools themselves. "found", "could not run" and
# "not checked" are different answers: only the last one lets the run go on.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
for tool in honnef.co/go/tools/cmd/staticcheck github.com/kisielk/errcheck mvdan.cc/gofumpt golang.org/x/tools/cmd/deadcode golang.org/x/vuln/cmd/govulncheck; do
	go -C tools build -o "$bin/" "$tool"
done
echo "gofumpt"
unformatted=$(git ls-files '*.go' | xargs "$bin/gofumpt" -l)
if [ -n "$unformatted" ]; then
	printf 'not formatted; run gofumpt -w on:\n%s\n' "$unformatted"
	exit 1
fi
for module in . tools conformance; do
	cd "$root/$module"
	tags=
	[ "$module" = conformance ] && tags=conformance
	echo "staticcheck $module"
	"$bin/staticcheck" -checks inherit,ST1000 -tags "$tags" ./...
done
cd "$root"
echo "errcheck"
"$bin/errcheck" -ignoretests -exclude "$root/tools/errcheck.txt" $(go list ./... | grep -v test$)
echo "deadcode"
dead=$("$bin/deadcode" -test ./... | grep -v -e '_test\.go' -e 'test/' || true)
if [ -n "$dead" ]; then
	printf 'nothing calls:\n%s\n' "$dead"
	exit 1
fi
echo "govulncheck"
if out=$("$bin/govulncheck" ./... 2>&1); then
	echo "no known vulnerability"
elif echo "$out" | grep -q 'Your code is affected'; then
	echo "$out"
	exit 1
else
	echo "NOT CHECKED: the vulnerability database could not be read"
fi
