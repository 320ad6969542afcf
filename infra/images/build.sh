#!/usr/bin/env bash
# The images, by whatever engine there is: docker with its daemon, podman, or buildah, which needs
# neither daemon nor user namespaces.   infra/images/build.sh [server|worker|airflow ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() { printf 'headrace: %s\n' "$*" >&2; exit 4; }

if docker info >/dev/null 2>&1; then
    engine=(docker build)
elif command -v podman >/dev/null; then
    engine=(podman build)
elif command -v buildah >/dev/null; then
    engine=(buildah build --isolation chroot --storage-driver vfs --layers=false)
else
    fail 'no engine that answers: start docker, or apt-get install podman or buildah'
fi
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
for target in "${@:-server worker airflow}"; do
    for each in $target; do
        name=$each
        [ "$each" != worker ] || name=python # kfp's runner wants to read "python" in it
        image=ghcr.io/headrace/headrace-$name:$version
        "${engine[@]}" --file infra/images/Dockerfile --target "$each" --tag "$image" .
        printf 'headrace: built %s\n' "$image" >&2
    done
done
