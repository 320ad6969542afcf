"""What a machine refuses: disks, Java, ports, a stack that runs; each with its remedy."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pytest

from headrace import spark
from headrace.errors import EnvironmentFault
from headrace.log.files import FileLog
from headrace.quarantine import Quarantine
from headrace.replay import stream
from headrace.settings import PROJECT, java_command
from tests.contract.command_line import Place


def test_a_result_that_cannot_be_written_is_refused_before_the_run(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.save(place.rows())
    monkeypatch.setattr(stream, "replay", lambda *_: pytest.fail("it ran"))
    line = ("replay", "--line", place.yaml, "--data", place.data, "--json")
    place.refuses(4, [str(place.data), "is a folder", "name of a file"], *line, place.data)
    below = place.yaml / "result.json"
    place.refuses(4, [str(below), f"{place.yaml} is a file", "another path"], *line, below)
    place.refuses(4, ["/proc/x.json", "/proc takes no new file"], *line, "/proc/x.json")


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(folder: Path) -> None:
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.e2e
def test_a_full_disk_ends_each_verb_with_its_remedy_and_nothing_half_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.save(place.rows())
    with _small_disk(place.root / "small") as small:
        monkeypatch.setenv("HEADRACE_HOME", str(small / "home"))
        words = [str(small), "GiB free", "HEADRACE_HOME to another disk"]
        place.refuses(4, words, "up", "--line", "toy")
        _fill(small)
        line = ("--line", place.yaml, "--data", place.data, "--json", small / "toy.json")
        for arguments in (("apply",), ("replay", *line)):
            ended = place.headrace(*arguments)
            assert (ended.code, ended.err.count("\n")) == (4, 1)
            assert "No space left" in ended.err
        schema = pa.schema({"n": pa.int64()})
        log = FileLog(small / "log", schema, writer=True)
        with pytest.raises(OSError, match="No space left"):
            log.append(pa.table({"n": range(1000)}, schema=schema))
        log.close()
        with pytest.raises(OSError, match="No space left"):
            place.store(versions=1)
        with pytest.raises(OSError, match="No space left"):
            Quarantine(small / "home").add(3, 5, ["why"])
        left = [path for path in small.rglob("*") if path.is_file() and path.name != "filler"]
        assert [path for path in left if path.stat().st_size] == []
        assert not [path for path in left if path.name != ".lock"]


# the machine


def test_java_is_looked_for_where_spark_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remedy = "apt-get install openjdk-17-jre-headless"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(EnvironmentFault, match=rf"{remedy} \(no 'java' on PATH\)"):
        spark.require_java()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert java_command() == str(tmp_path / "jdk" / "bin" / "java")
    with pytest.raises(EnvironmentFault, match=rf"{remedy} .*unset JAVA_HOME"):
        spark.require_java()


JAVA_8 = "#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n"
NOT_ROOT = "#!/bin/sh\necho 1000\n"


@pytest.mark.parametrize("java", [None, JAVA_8], ids=["none", "Java 8"])
def test_make_tells_a_user_who_is_not_root_how_to_get_java(
    tmp_path: Path, java: str | None
) -> None:
    """`make demo` and `make test` begin with this script."""
    for name, script in {"id": NOT_ROOT, "java": java}.items():
        if script is not None:
            (tmp_path / name).write_text(script, encoding="utf-8")
            (tmp_path / name).chmod(0o755)
    for name in ("bash", "dirname", "sed", "awk", "df"):
        found = next(p for p in (Path("/usr/bin", name), Path("/bin", name)) if p.exists())
        (tmp_path / name).symlink_to(found)
    ended = subprocess.run(
        ["bash", str(PROJECT / "infra" / "setup" / "install.sh")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = "headrace: Java 17 is missing; as root: apt-get install openjdk-17-jre-headless\n"
    assert (ended.returncode, ended.stderr, ended.stdout) == (4, told, "")


@pytest.mark.parametrize("service", ["SERVER", "COLLECTOR", "AIRFLOW"])
def test_a_port_in_use_is_named_with_its_setting(place: Place, service: str) -> None:
    name = f"HEADRACE_{service}_PORT"
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", int(os.environ[name])))
        holder.listen()
        ended = place.headrace("up", "--line", "toy")
    assert ended.code == 4
    for word in (f"port {os.environ[name]}", "in use", name, "make down"):
        assert word in ended.err
    assert not (place.home / "run" / "stack.json").exists()


@pytest.mark.parametrize("port", ["http", "0", "70000", "²"])
def test_a_wrong_port_is_named(place: Place, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("HEADRACE_SERVER_PORT", port)
    place.refuses(2, [f"HEADRACE_SERVER_PORT='{port}'", "1 to 65535"], "status")


def test_a_running_stack_is_named(place: Place) -> None:
    mark = {"HEADRACE_STACK_ID": "test", "HEADRACE_HOME": str(place.home)}
    member = subprocess.Popen(["sleep", "60"], env=mark)
    try:
        ended = place.headrace("up", "--line", "toy")
    finally:
        member.kill()
        member.wait()
    assert ended.code == 4
    assert f"already running in {place.home}" in ended.err
    assert "make down" in ended.err
    assert not (place.home / "run" / "stack.json").exists()


def test_a_home_that_is_a_file_is_named(place: Place) -> None:
    place.home.write_text("no folder", encoding="utf-8")
    place.refuses(4, [str(place.home), "HEADRACE_HOME"], "apply")
