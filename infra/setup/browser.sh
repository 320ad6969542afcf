#!/usr/bin/env bash
# Chromium for the browser tests: from the distribution when root, otherwise those tests skip.
set -euo pipefail
command -v chromium >/dev/null && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    printf 'headrace: installing Chromium for the browser tests\n' >&2
    apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends chromium >&2
else
    printf 'headrace: no Chromium; browser tests will skip (apt-get install chromium)\n' >&2
fi
