#!/usr/bin/env bash
# PostgreSQL for `make demo PROFILE=services` and the tests, which start their own on a free port:
# from the distribution when root, otherwise those tests skip.
set -euo pipefail
[ -n "$(ls /usr/lib/postgresql/*/bin/postgres 2>/dev/null)" ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    printf 'headrace: installing PostgreSQL for the services profile and its tests\n' >&2
    export DEBIAN_FRONTEND=noninteractive
    # no cluster of the distribution's own: nothing may listen on the default port
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] ||
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends postgresql >&2
else
    printf 'headrace: no PostgreSQL; its tests will skip (apt-get install postgresql)\n' >&2
fi
