#!/usr/bin/env bash
# jars.sh NAME [PROFILE…]: the jars that infra/NAME/pom.xml pins, from Maven Central into out/NAME,
# those of each profile in a folder of their own. Quiet when done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() { printf 'headrace: %s\n' "$*" >&2; exit 4; }

name=$1
pom=infra/$name/pom.xml
stamp=out/$name/installed
[ -f "$stamp" ] && cmp -s "$stamp" "$pom" && exit 0

if ! command -v mvn >/dev/null; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        printf 'headrace: no Maven; tests of %s will skip (apt-get install maven)\n' "$name" >&2
        exit 0
    fi
    printf 'headrace: installing Maven for the jars of %s\n' "$name" >&2
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends maven; } >&2 ||
        fail "apt-get could not install maven; see the lines above"
fi

fetch() { # FOLDER [OPTION…]
    mvn --quiet --batch-mode -Dstyle.color=never --file "$pom" "${@:2}" \
        org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$PWD/$1" >&2 ||
        fail "Maven could not fetch the jars of $pom; is there a network?"
}

rm -rf "out/$name"
[ $# -gt 1 ] || fetch "out/$name"
for profile in "${@:2}"; do
    fetch "out/$name/$profile" --activate-profiles "$profile"
done
cp "$pom" "$stamp"
