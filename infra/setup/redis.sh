#!/usr/bin/env bash
# Redis for the tests of the online store, which start their own on a free port: from the
# distribution when root, otherwise those tests skip.
set -euo pipefail
command -v redis-server >/dev/null && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    printf 'headrace: installing Redis for the tests of the online store\n' >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends redis-server >&2
else
    printf 'headrace: no Redis; its tests will skip (apt-get install redis-server)\n' >&2
fi
