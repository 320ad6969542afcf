#!/usr/bin/env bash
# Jars from Maven Central, as infra/kafka/pom.xml pins them, into out/kafka: spark/ holds Spark's
# Kafka source (`headrace stream --from kafka://…`), broker/ a broker for the tests. Quiet when done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() { printf 'headrace: %s\n' "$*" >&2; exit 4; }

stamp=out/kafka/installed
[ -f "$stamp" ] && cmp -s "$stamp" infra/kafka/pom.xml && exit 0

if ! command -v mvn >/dev/null; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        printf 'headrace: no Maven; Kafka tests will skip (apt-get install maven)\n' >&2
        exit 0
    fi
    printf 'headrace: installing Maven for the jars of Kafka\n' >&2
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends maven; } >&2 ||
        fail "apt-get could not install maven; see the lines above"
fi

rm -rf out/kafka
for profile in spark broker; do
    mvn --quiet --batch-mode -Dstyle.color=never --file infra/kafka/pom.xml --activate-profiles "$profile" \
        org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$PWD/out/kafka/$profile" >&2 ||
        fail "Maven could not fetch the jars of infra/kafka/pom.xml; is there a network?"
done
cp infra/kafka/pom.xml "$stamp"
