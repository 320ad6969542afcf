"""S3 for Spark: Hadoop's S3A connector, told what boto3 finds in the environment.

Address, region and credentials are boto3's, as for every other part that lies on S3 (`AWS_*`, or
the file and the roles that boto3 knows). Keys go into a running session: given at its start they
would stand on Java's command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from headrace.errors import EnvironmentFault

_AWS_OWN: Final = re.compile(r"https://s3(\.[a-z0-9-]+)?\.amazonaws\.com(\.cn)?")
_PATIENCE_S: Final = 5.0
_REFUSED: Final = frozenset((
    "403", "AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken",
    "SignatureDoesNotMatch",
))  # fmt: skip
_S3A: Final = "org.apache.hadoop.fs.s3a"
_PROVIDER: Final = "fs.s3a.aws.credentials.provider"
_FIXED: Final = {
    "fs.s3.impl": f"{_S3A}.S3AFileSystem",  # Feast's sources say s3://
    "fs.s3a.input.stream.type": "classic",  # the default needs the SDK's asynchronous client
    # An outage of some seconds is outlasted; by default a longer one is noticed after minutes
    "fs.s3a.attempts.maximum": "2",
    "fs.s3a.retry.limit": "2",
    "fs.s3a.connection.establish.timeout": "5s",
    "fs.s3a.connection.request.timeout": "15s",  # the least that S3A takes
}


def jars(folder: Path) -> list[Path]:
    """The connector's jars. Raises `EnvironmentFault` when they are not installed."""
    found = sorted(folder.glob("*.jar"))
    if not found:
        raise EnvironmentFault(
            f"no jars of Hadoop's S3A connector in {folder}; run infra/setup/s3a.sh, or set "
            "HEADRACE_S3A_JARS to their folder"
        )
    return found


def options(named: str) -> dict[str, str]:
    """What a session is told to reach S3 as boto3 would; `named` is who asks, for errors.

    Keys that last go along, to executors too. Those that boto3 renews are left to the SDK for
    Java, which looks where boto3 does. Raises `EnvironmentFault` without credentials.
    """
    from botocore.credentials import RefreshableCredentials

    with _faults(named):
        session, client = _client()
    found = session.get_credentials()
    if found is None:
        raise _without_credentials(named)
    given = _FIXED | {"fs.s3a.endpoint.region": client.meta.region_name}
    if not _AWS_OWN.fullmatch(client.meta.endpoint_url):
        given |= {"fs.s3a.endpoint": client.meta.endpoint_url, "fs.s3a.path.style.access": "true"}
    if isinstance(found, RefreshableCredentials):
        chain = "software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider"
        return given | {_PROVIDER: chain}
    keys = found.get_frozen_credentials()
    given |= {"fs.s3a.access.key": keys.access_key, "fs.s3a.secret.key": keys.secret_key}
    if not keys.token:
        return given | {_PROVIDER: f"{_S3A}.SimpleAWSCredentialsProvider"}
    given |= {"fs.s3a.session.token": keys.token}
    return given | {_PROVIDER: f"{_S3A}.TemporaryAWSCredentialsProvider"}


def check(bucket: str, prefix: str, named: str) -> None:
    """Raise `EnvironmentFault` unless S3 lists keys with `prefix` and lets one be read.

    `named` is the place as the user gave it. Where S3 does not answer this takes seconds.
    """
    with _faults(named):
        client = _client()[1]
        found = client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents", [])
        for listed in found:
            client.head_object(Bucket=bucket, Key=listed["Key"])
    if not found:
        raise EnvironmentFault(f"{named}: nothing lies there; correct it, or bring a first object")


def _client() -> tuple[Any, Any]:
    """boto3's session, and its S3 client, which gives up soon."""
    import boto3
    from botocore.config import Config

    session = boto3.Session()
    patience = Config(
        connect_timeout=_PATIENCE_S,
        read_timeout=_PATIENCE_S,
        retries={"total_max_attempts": 2, "mode": "standard"},
    )
    return session, session.client("s3", config=patience)


@contextmanager
def _faults(named: str) -> Iterator[None]:
    """Turn what boto3 raises into an `EnvironmentFault` that names what to correct."""
    from botocore import exceptions as aws

    try:
        yield
    except (aws.NoCredentialsError, aws.PartialCredentialsError) as problem:
        raise _without_credentials(named) from problem
    except aws.ClientError as problem:
        raise EnvironmentFault(f"{named}: {_answer(problem)}") from problem
    except (aws.BotoCoreError, ValueError) as problem:  # an endpoint that is no URL: ValueError
        raise EnvironmentFault(
            f"{named}: S3 could not be reached ({str(problem).rstrip('.')}); start it there, or "
            "correct AWS_ENDPOINT_URL"
        ) from problem


def _answer(problem: Any) -> str:
    """What S3 answered, and the remedy."""
    told = problem.response.get("Error", {})
    code = str(told.get("Code"))
    if code == "NoSuchBucket":
        return "the bucket does not exist; make it, or correct its name or AWS_ENDPOINT_URL"
    if code in _REFUSED:
        return (
            f"S3 refused the credentials ({code}: {told.get('Message')}); correct "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or allow them s3:ListBucket and "
            "s3:GetObject there"
        )
    return f"S3 answered {code}: {told.get('Message')}; correct AWS_ENDPOINT_URL or the bucket"


def _without_credentials(named: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{named}: no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )
