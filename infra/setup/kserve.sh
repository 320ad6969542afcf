#!/usr/bin/env bash
# KServe's server, with what it needs to serve a line's model, into out/kserve: a peer of
# `make bench` that does not install beside Airflow. Quiet when done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() { printf 'headrace: %s\n' "$*" >&2; exit 4; }

stamp=out/kserve/installed
[ -f "$stamp" ] && cmp -s "$stamp" infra/setup/kserve.txt && exit 0

uv=$(command -v uv || echo out/uv/bin/uv)
[ -x "$uv" ] || fail "no uv; run bash infra/setup/install.sh first"
rm -rf out/kserve
"$uv" venv --quiet --python .venv/bin/python out/kserve &&
    "$uv" pip install --quiet --compile-bytecode --python out/kserve/bin/python -r infra/setup/kserve.txt &&
    "$uv" pip install --quiet --no-deps --python out/kserve/bin/python --editable . ||
    fail "uv could not install infra/setup/kserve.txt; see the lines above"
cp infra/setup/kserve.txt "$stamp"
