#!/usr/bin/env bash
# What is in the images, as CycloneDX: every locked package with its hashes, from uv.lock alone.
#   infra/setup/sbom.sh [FILE]     default: out/sbom.json
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
file=${1:-out/sbom.json}
uv=$(command -v uv || echo "$PWD/out/uv/bin/uv")
[ -x "$uv" ] || { printf 'headrace: no uv; run bash infra/setup/install.sh first\n' >&2; exit 4; }
mkdir -p "$(dirname "$file")"
"$uv" export --quiet --frozen --no-dev --format cyclonedx1.5 --preview-features sbom-export \
    --output-file "$file" >/dev/null
printf 'sbom: %s\n' "$file" >&2
