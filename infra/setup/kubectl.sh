#!/usr/bin/env bash
# kubectl, whose `kustomize` renders infra/k8s for the tests: from the distribution when root and
# where it has one, otherwise those tests skip.
set -euo pipefail
command -v kubectl >/dev/null && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    printf 'headrace: installing kubectl for the tests of the manifests\n' >&2
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && { apt-get install -y -qq --no-install-recommends kubernetes-client ||
        apt-get install -y -qq --no-install-recommends kubectl; }; } >&2 && exit 0
fi
printf 'headrace: no kubectl; tests of the manifests will skip (apt-get install kubernetes-client)\n' >&2
