"""What Spark is told of S3, and what a mistake looks like: a real API that asks who is there."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import fsspec
import httpx
import pytest

from headrace import s3a, spark
from headrace.errors import EnvironmentFault, InputError
from headrace.settings import load_settings
from headrace.stream.files import Objects
from headrace.stream.source import parse
from tests.s3_server import s3_bucket, s3_server

NAME = "headrace-s3a"
LISTS = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"}],
}


@pytest.fixture
def guarded() -> Iterator[dict[str, str]]:
    """A bucket with one object, on a server that from then on asks for keys; keys that may list."""
    with s3_server() as server, s3_bucket(server, NAME):
        fsspec.filesystem("s3").pipe(f"{NAME}/in/a.jsonl", b"{}\n")
        iam = boto3.client("iam")
        iam.create_user(UserName="reader")
        keys = iam.create_access_key(UserName="reader")["AccessKey"]
        iam.put_user_policy(UserName="reader", PolicyName="l", PolicyDocument=json.dumps(LISTS))
        httpx.post(f"{server}/moto-api/reset-auth", content=b"0").raise_for_status()
        yield {
            "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
        }


def check(source: str) -> None:
    found = parse(source)
    assert isinstance(found, Objects)
    found.check(load_settings({}))


def test_a_prefix_with_objects_passes_and_others_are_told_apart(bucket: str) -> None:
    fsspec.filesystem("s3").pipe(f"{bucket.removeprefix('s3://')}/in/a.jsonl", b"{}\n")
    check(f"files:{bucket}/in")
    check(f"files:{bucket}")
    with pytest.raises(EnvironmentFault, match=rf"{bucket}/none: nothing lies there"):
        check(f"files:{bucket}/none")
    with pytest.raises(EnvironmentFault, match=r"s3://no-such-bucket/in: the bucket does not exis"):
        check("files:s3a://no-such-bucket/in")


def test_refused_credentials_are_named(
    guarded: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvironmentFault, match=r"credentials \(InvalidAccessKeyId.*AWS_SECRET"):
        check(f"files:s3://{NAME}/in")
    for name, value in guarded.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentFault, match=r"refused the credentials \(.*allow.*s3:GetObject"):
        check(f"files:s3://{NAME}/in")  # it may list, but not read
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(EnvironmentFault, match=r"credentials \(SignatureDoesNotMatch"):
        check(f"files:s3://{NAME}/in")


@pytest.mark.parametrize("absent", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_absent_credentials_are_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, absent: str
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv(absent)
    for ask in (lambda: check(f"files:{bucket}"), lambda: s3a.options(f"files:{bucket}")):
        with pytest.raises(EnvironmentFault, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
            ask()


def test_an_address_without_an_answer_is_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3a, "_PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        for address in (f"http://127.0.0.1:{port}", "http://127.0.0.1:9", "127.0.0.1:9"):
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            with pytest.raises(EnvironmentFault, match=r"not be reached.*AWS_ENDPOINT_URL"):
                check(f"files:{bucket}")


def test_spark_is_told_what_boto3_finds(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = s3a.options("x")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", given["fs.s3a.endpoint"])
    assert given["fs.s3a.path.style.access"] == "true"
    assert (given["fs.s3a.access.key"], given["fs.s3a.secret.key"]) == ("test", "test")
    assert given["fs.s3a.aws.credentials.provider"].endswith("SimpleAWSCredentialsProvider")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t")
    given = s3a.options("x")
    assert given["fs.s3a.endpoint.region"] == "eu-west-1"
    assert given.keys().isdisjoint({"fs.s3a.endpoint", "fs.s3a.path.style.access"})
    assert given["fs.s3a.session.token"] == "t"
    assert given["fs.s3a.aws.credentials.provider"].endswith("TemporaryAWSCredentialsProvider")


def test_keys_that_are_renewed_are_left_to_the_sdk(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a.b.c")
    for name, value in {
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/reader",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    given = s3a.options("x")
    assert given["fs.s3a.aws.credentials.provider"].endswith(".DefaultCredentialsProvider")
    assert given.keys().isdisjoint({"fs.s3a.access.key", "fs.s3a.secret.key"})


def test_absent_jars_are_told_with_their_remedy(tmp_path: Path) -> None:
    settings = load_settings({"HEADRACE_S3A_JARS": str(tmp_path)})
    with pytest.raises(EnvironmentFault, match=r"infra/setup/s3a\.sh.*HEADRACE_S3A_JARS"):
        Objects("abc", "in").jars(settings)


def test_buckets_are_named_by_their_addresses() -> None:
    found = Objects("a.b-c", "in/day=1")
    for text in ("files:s3://a.b-c/in/day=1", "files:s3a://a.b-c/in/day=1/"):
        assert parse(text) == found
    assert parse(str(replace(found, prefix=""))) == Objects("a.b-c", "")
    for text in ("s3://abc/x", "files:s3:/abc", "files:s3://", "files:s3://abc/*", "files:s3://A_",
                 "files:s3://abc//x", "files:s3://abc/../x"):  # fmt: skip
        with pytest.raises(InputError, match="files:s3://BUCKET/PREFIX"):
            parse(text)
    with pytest.raises(InputError, match="AWS_ACCESS_KEY_ID") as told:
        parse("files:s3://me:hunter2@abc/x")
    assert "hunter2" not in str(told.value)


def test_a_java_that_started_without_the_jars_is_told_apart() -> None:
    told = "An error occurred while calling o1.text.\n: java.lang.RuntimeException: x\n"
    for cause, remedy in (
        (f"{told}Caused by: Class org.apache.hadoop.fs.s3a.S3AFileSystem not found\n", "s3a.sh"),
        (told, "java.lang.RuntimeException: x; correct the address"),
    ):
        with pytest.raises(EnvironmentFault, match=re.escape(remedy)), spark.opened("there"):
            raise RuntimeError(cause)
