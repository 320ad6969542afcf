#!/usr/bin/env bash
# Jars from Maven Central, as infra/s3a/pom.xml pins them, into out/s3a: with them Spark reads S3
# (`headrace stream --from files:s3://…`). Quiet when done.
exec bash "$(dirname "${BASH_SOURCE[0]}")/jars.sh" s3a
