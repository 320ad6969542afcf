#!/usr/bin/env bash
# Everything that `make demo` and `make test` need on a fresh Debian or Ubuntu machine with
# Python 3.11, git, make and a network: uv, the locked environment, Java 17. Quiet when done.
# An argument names one more dependency group to install, such as `bench`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() { printf 'headrace: %s\n' "$*" >&2; exit 4; }

find_python() {
    local candidate
    for candidate in python3.11 python3 python; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 is missing; install it, for example: apt-get install python3.11 python3.11-venv"
}

find_uv() {
    if command -v uv >/dev/null; then
        command -v uv
        return
    fi
    local home="$PWD/out/uv"
    if [ ! -x "$home/bin/uv" ]; then
        local python
        python=$(find_python)
        printf 'headrace: installing uv into out/uv\n' >&2
        "$python" -m venv "$home" >&2 ||
            fail "python -m venv failed; on Debian: apt-get install python3.11-venv"
        "$home/bin/pip" install --quiet 'uv>=0.13' >&2 || fail "pip could not install uv; is there a network?"
    fi
    printf '%s\n' "$home/bin/uv"
}

java_major() {
    local java="${JAVA_HOME:+$JAVA_HOME/bin/}java"
    command -v "$java" >/dev/null || { echo 0; return; }
    "$java" -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p'
}

ensure_java() {
    [ "$(java_major)0" -ge 170 ] && return
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        printf 'headrace: installing Java 17\n' >&2
        export DEBIAN_FRONTEND=noninteractive
        # Debian 13 has no Java 17; what its default is (21), Spark takes as well
        { apt-get update -qq && { apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless ||
            apt-get install -y -qq --no-install-recommends default-jre-headless; }; } >&2 || true
    fi
    [ "$(java_major)0" -ge 170 ] ||
        fail "Java 17 is missing${JAVA_HOME:+ in JAVA_HOME=$JAVA_HOME}; as root: apt-get install openjdk-17-jre-headless${JAVA_HOME:+, and unset JAVA_HOME}"
}

free_mib=$(df -Pm . | awk 'NR==2 {print $4}')
[ -d .venv ] || [ "$free_mib" -ge 6000 ] ||
    fail "only $free_mib MiB free here; the environment needs 6000 MiB: free some space"

ensure_java # before the long download, so that its absence is told at once

# The stamp spares the resolver's start on every make; it is renewed whenever the lock changes.
group=${1:-}
stamp=.venv/headrace-synced${group:+-$group}
if [ ! -f "$stamp" ] || [ uv.lock -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    uv=$(find_uv)
    # Bytecode at install time: TensorFlow then starts in 3 s instead of 8-19 s.
    env -u PYTHONDONTWRITEBYTECODE "$uv" sync --locked --quiet --compile-bytecode \
        ${group:+--group "$group"} --python "$(find_python)" || fail "uv could not install the locked environment; see the lines above"
    # A sync without a group takes that group's packages away: its stamp goes too.
    rm -f .venv/headrace-synced*
    touch .venv/headrace-synced "$stamp"
fi
