#!/bin/sh
# What people type: curl at its defaults, with a file, and with --http2.
set -eu
version=$(curl --version | sed -n '1s/^curl \([0-9.]*\).*/\1/p')
at() { printf '%s/curl/%s/%s' "$BASE" "$version" "$1"; }
body='{"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}'
json='Content-Type: application/json'
key='Authorization: Bearer key'
curl -sS -o /dev/null -H "$json" -H "$key" -d "$body" "$(at json)/v1/chat/completions"
printf '%s\n' "$body" | curl -sS -o /dev/null -H "$json" -H "$key" --data-binary @- "$(at file)/v1/chat/completions"
curl -sS -o /dev/null -H "$json" -H "$key" --http2 -d "$body" "$(at http2)/v1/chat/completions"
printf '%s' "$body" | curl -sS -o /dev/null -X POST -H "$json" -H "$key" -T - "$(at chunked)/v1/chat/completions"
curl -sS -o /dev/null -H "$json" -H "x-api-key: key" -H 'anthropic-version: 2023-06-01' \
	-d '{"model":"tiny","max_tokens":4,"messages":[{"role":"user","content":"hello"}]}' "$(at messages)/v1/messages"
curl -sS -o /dev/null -H "$key" "$(at models)/v1/models"
