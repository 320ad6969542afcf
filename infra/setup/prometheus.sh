#!/usr/bin/env bash
# promtool for the tests of the alert rules: from the distribution when root, otherwise they skip.
set -euo pipefail
command -v promtool >/dev/null && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    printf 'headrace: installing promtool for the tests of the alert rules\n' >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    cd "$(mktemp -d)" && apt-get download -qq prometheus >&2 # the package would start a service
    dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x -C /usr/local/bin --strip-components=3 ./usr/bin/promtool
else
    printf 'headrace: no promtool; its tests will skip (apt-get install prometheus)\n' >&2
fi
