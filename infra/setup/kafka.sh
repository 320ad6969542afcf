#!/usr/bin/env bash
# Jars from Maven Central, as infra/kafka/pom.xml pins them, into out/kafka: spark/ holds Spark's
# Kafka source (`headrace stream --from kafka://…`), broker/ a broker for the tests. Quiet when done.
exec bash "$(dirname "${BASH_SOURCE[0]}")/jars.sh" kafka spark broker
