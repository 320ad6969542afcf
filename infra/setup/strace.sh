#!/usr/bin/env bash
# strace for the test of a slow disk, which holds up another process's fsync with it: from the
# distribution when root, otherwise that test skips.
set -euo pipefail
command -v strace >/dev/null && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    printf 'headrace: installing strace for the test of a slow disk\n' >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends strace >&2
else
    printf 'headrace: no strace; its test will skip (apt-get install strace)\n' >&2
fi
