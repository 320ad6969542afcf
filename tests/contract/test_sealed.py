"""Of all who create a name one wins, on a disk and on S3; what cannot be reached is named."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
from s3fs import S3FileSystem

from headrace.errors import DeclarationError, EnvironmentFault
from headrace.sealed import SealedFiles, sealed
from headrace.settings import load_settings
from tests.loopback import Answering, serving_on
from tests.s3_server import CREDENTIALS, forget_clients


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> SealedFiles:
    local = request.param == "local"
    return SealedFiles(tmp_path if local else f"{request.getfixturevalue('bucket')}/sealed")


def test_the_first_to_create_a_name_keeps_it(files: SealedFiles) -> None:
    assert files.create("champion/1.json", b"one")
    assert not files.create("champion/1.json", b"two")
    assert files.read("champion/1.json") == b"one"
    assert files.create("champion/1.json", b"one")  # a put that is sent again after a lost answer


def test_a_file_is_opened_to_be_read_more_than_once(files: SealedFiles) -> None:
    files.replace("opened/x", b"some bytes")
    with files.opened("opened/x") as file:
        assert file is not None
        assert file.read() == b"some bytes"
        file.seek(5)
        assert file.read() == b"bytes"
    assert file.closed or isinstance(file, BytesIO)
    with files.opened("opened/y") as absent:
        assert absent is None


def test_what_is_there_is_listed_and_can_be_removed(files: SealedFiles) -> None:
    for name in ("a/1/x", "a/1/y", "a/2/x"):
        files.replace(name, b"")
    assert files.tree("a") == ["1/x", "1/y", "2/x"]
    assert files.names("a/1") == ["x", "y"]
    files.remove("a/1/x")
    files.remove("a/1/x")
    assert not files.exists("a/1/x")
    assert files.tree("a") == ["1/y", "2/x"]
    assert files.tree("b") == files.names("b") == []


class Answers(Answering):
    """An S3 that answers conditional puts with the codes in `script`, then with 200."""

    script: ClassVar[list[tuple[int, str]]] = []
    asked: ClassVar[list[str | None]] = []

    def do_PUT(self) -> None:
        self._body()
        self.asked.append(self.headers.get("If-None-Match"))
        status, code = self.script.pop(0) if self.script else (200, "")
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self._send(status, body if code else b"", "application/xml")

    def do_GET(self) -> None:
        self._send(200, b"of another writer", "application/octet-stream")

    do_HEAD = do_GET


@pytest.mark.slow
def test_a_small_document_is_one_request_to_s3(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = SealedFiles(f"{bucket}/documents")
    files.replace("x.json", sealed({"a": 1}))
    asked, real = [], S3FileSystem._call_s3

    async def call(own: S3FileSystem, method: str, *rest: Any, **named: Any) -> Any:
        asked.append(method)
        return await real(own, method, *rest, **named)

    monkeypatch.setattr(S3FileSystem, "_call_s3", call)
    assert files.read_json("x.json") == {"a": 1}
    assert files.read_json("y.json") is None
    assert asked == ["get_object", "get_object"]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    Answers.script, Answers.asked = [], []
    with serving_on(Answers) as address:
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        forget_clients()
        yield Answers
    forget_clients()


def test_a_put_that_s3_calls_busy_is_sent_again(scripted: type[Answers]) -> None:
    scripted.script[:] = [(409, "ConditionalRequestConflict")] * 2
    assert SealedFiles("s3://busy/x").create("a", b"1")
    assert scripted.asked == ["*", "*", "*"]


def test_a_store_that_does_not_say_which_condition_failed_is_understood(
    scripted: type[Answers],
) -> None:
    scripted.script[:] = [(412, "PreconditionFailed")]
    assert not SealedFiles("s3://plain/x").create("a", b"1")


def test_a_store_out_of_reach_is_named_with_what_to_check(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvironmentFault, match=r"bucket does not exist.*HEADRACE_LINE_STORE"):
        SealedFiles("s3://no-such-bucket-here/x").create("a", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_clients()
    with pytest.raises(EnvironmentFault, match=r"could not be reached.*AWS_ENDPOINT_URL"):
        SealedFiles("s3://elsewhere/x").read("a")
    forget_clients()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("s3://key:secret@bucket/x", "AWS_ACCESS_KEY_ID"),
        ("s3://", "names no store"),
        ("bucket/prefix", "give file:///folder or s3://bucket/prefix"),
        ("gs://bucket", "names no store"),
    ],
)
def test_a_store_that_is_none_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(DeclarationError, match=why) as refused:
        load_settings({"HEADRACE_LINE_STORE": text})
    assert "secret" not in str(refused.value)


def test_versions_lie_in_the_home_unless_a_store_is_given(tmp_path: Path) -> None:
    home = {"HEADRACE_HOME": str(tmp_path)}
    assert load_settings(home).line_store_url("x") == str(tmp_path / "lines" / "x")
    given = load_settings(home | {"HEADRACE_LINE_STORE": "s3://bucket/some/"})
    assert given.line_store_url("x") == "s3://bucket/some/x"
    assert given.line_home("x") == tmp_path / "lines" / "x"
