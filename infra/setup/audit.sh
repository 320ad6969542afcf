#!/usr/bin/env bash
# Known vulnerabilities of the locked dependencies, by `uv audit` (it asks https://osv.dev).
# Fails when there are some; without a network it says so and passes. Arguments go to uv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

ignored=() # ids of advisories that do not concern us, each with the reason behind it

say() { printf 'audit: %s\n' "$*" >&2; }

uv=$(command -v uv || echo "$PWD/out/uv/bin/uv")
if ! "$uv" audit --help >/dev/null 2>&1; then
    say 'not done: this uv has no audit; `uv self update`, or pip install -U uv'
    exit 0
fi
told=$(mktemp)
trap 'rm -f "$told"' EXIT
code=0
UV_HTTP_TIMEOUT=10 UV_HTTP_RETRIES=1 timeout 60 "$uv" audit --frozen --no-progress \
    --preview-features audit-command ${ignored[@]/#/--ignore=} "$@" >"$told" 2>&1 || code=$?
if [ "$code" -eq 124 ] || { [ "$code" -eq 2 ] && grep -qE 'sending request|Request failed|timed out' "$told"; }; then
    say 'not done: the advisories could not be reached; is there a network?'
    exit 0
fi
cat "$told" >&2
exit "$code"
