"""What a mistake looks like at the command line: one clear line, its exit code, nothing written.

The verbs run in this process through `headrace.cli.main`, as the installed script calls it;
only what needs a process of its own gets one.
"""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import typer
import yaml

from headrace import cli, spark
from headrace.errors import EnvironmentFault
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.quarantine import Quarantine
from headrace.replay import stream
from headrace.settings import PROJECT, java_command
from tests.campaign import free_port

TOY: dict[str, Any] = {
    "line": "toy",
    "columns": {"item": "string"},
    "source": {
        "kind": "files",
        "impressions": {
            "path": "toy.csv",
            "id": "id",
            "time": {"expression": "at"},
            "columns": {"item": "item"},
        },
        "label": {"value": "hit", "delay_s": "60"},
    },
    "label": {"engagement": "hit", "outcome": "explicit", "attribution_window": "1d"},
    "windows": [
        {"name": "n", "key": ["item"], "event": "hit", "aggregate": "count", "window": "6h"}
    ],
    "request_features": [{"name": "item_id", "kind": "hash", "of": "item"}],
    "model": {"family": "ftrl", "categorical": ["item_id"], "table_bits": 8},
    "gates": {"data": {"min_rows": 10}},
    "cadence": {"incremental": "6h"},
}


@dataclass(frozen=True)
class Ended:
    """How a call of the command line ended."""

    code: int
    out: str
    err: str


class Place:
    """A home, a folder of lines with `toy.yaml`, data for it, and the command line."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys
        self.home, self.lines, self.data = root / "home", root / "lines", root / "data"
        self.lines.mkdir()
        self.data.mkdir()
        self.yaml = self.lines / "toy.yaml"
        self.result = root / "out" / "toy.json"
        self.declare(TOY)

    def declare(self, declared: Any) -> None:
        self.yaml.write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")

    def rows(self, days: int = 2, a_day: int = 40) -> list[dict[str, Any]]:
        start = datetime(2024, 1, 1, tzinfo=UTC)
        return [
            {
                "id": f"i{n}",
                "at": (start + timedelta(seconds=n * 86_400 / a_day)).isoformat(),
                "item": "abcd"[n % 4],
                "hit": int(n % 3 == 0),
            }
            for n in range(days * a_day)
        ]

    def save(self, rows: list[dict[str, Any]]) -> None:
        with (self.data / "toy.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def store(self, versions: int = 0, champions: int = 0) -> LineStore:
        store = LineStore(Path(os.environ["HEADRACE_HOME"]) / "lines" / "toy", "toy")
        for n in range(versions):
            version = store.publish(
                {"w": np.full(4, n, dtype=np.float32)},
                parent=None,
                from_tick=0,
                to_tick=1,
                excluded=[],
                watermark_us=0,
                event_at_us=0,
                feature_service="toy_v1",
                code="test",
                rows=1,
                metrics={},
            )
            if n < champions:
                store.advance(store.champion(), version.version, "promote", "test")
        return store

    def headrace(self, *arguments: str | Path) -> Ended:
        self._capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["headrace", *map(str, arguments)])
            cli.main()
        told = self._capsys.readouterr()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Ended(code, told.out, told.err)

    def refuses(self, code: int, words: list[str], *arguments: str | Path) -> str:
        """The one line on stderr of a call that is refused with this code and these words."""
        before = self._files()
        ended = self.headrace(*arguments)
        assert (ended.code, ended.out) == (code, "")
        assert ended.err.startswith("headrace: ")
        assert ended.err.count("\n") == 1
        assert "Traceback" not in ended.err
        for word in words:
            assert word in ended.err
        assert self._files() == before
        return ended.err

    def replay(self, *more: str | Path) -> tuple[str | Path, ...]:
        return ("replay", "--line", self.yaml, "--data", self.data, "--json", self.result, *more)

    def _files(self) -> list[str]:
        return sorted(str(path) for path in self.root.rglob("*"))


@pytest.fixture
def place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Place:
    made = Place(tmp_path, capsys)
    monkeypatch.setenv("HEADRACE_HOME", str(made.home))
    monkeypatch.setenv("HEADRACE_LINES_DIR", str(made.lines))
    for name in ("SERVER", "GRPC", "COLLECTOR", "LEARNER", "AIRFLOW"):
        monkeypatch.setenv(f"HEADRACE_{name}_PORT", str(free_port()))
    return made


def changed(path: str, value: Any) -> dict[str, Any]:
    """The toy line with one key (dots lead inwards) set to another value."""
    declared: dict[str, Any] = json.loads(json.dumps(TOY))
    inner: Any = declared
    *outer, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    for part in outer:
        inner = inner[part]
    inner[last] = value
    return declared


# what is declared wrongly


@pytest.mark.parametrize("verb", ["lines", "replay", "up"])
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("modle", {}, ["toy.yaml", "modle", "unknown key", "remove it or correct its spelling"]),
        ("source.impressions.pth", "x", ["impressions.pth", "unknown key"]),
        ("windows.0.window", 3, ["windows.0.window", "3", "a unit", "10m"]),
        ("label.attribution_window", "90", ["label.attribution_window", "'90'", "a unit"]),
        ("source.impressions.columns.item", "hit", ["columns.item", "'hit'", "take it out"]),
        ("windows.0.key", ["itme"], ["windows.n", "'itme'", "declared string or int column"]),
        ("timezone", "Mars/Base", ["timezone", "'Mars/Base'", "Europe/Berlin"]),
    ],
    ids=["key", "inner key", "window", "attribution", "label", "column", "timezone"],
)
def test_a_wrong_declaration_is_named(
    place: Place, verb: str, key: str, value: Any, words: list[str]
) -> None:
    place.declare(changed(key, value))
    arguments = {"lines": ("lines",), "replay": place.replay(), "up": ("up", "--line", "toy")}
    place.refuses(2, words, *arguments[verb])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"line: caf\xe9\n", ["UTF-8", "byte 9 is 0xe9", "save it as UTF-8"]),
        (b"line: toy\n  columns: {\n", ["line 2", "not readable as YAML", "correct it"]),
        (b"", ["a mapping", "line: <name>"]),
        (b"line: \x00\n", ["not readable as YAML"]),
    ],
    ids=["latin-1", "syntax", "empty", "zero byte"],
)
def test_a_file_that_is_no_yaml_is_named(place: Place, raw: bytes, words: list[str]) -> None:
    place.yaml.write_bytes(raw)
    place.refuses(2, ["toy.yaml", *words], "lines")
    place.refuses(2, ["toy.yaml", *words], *place.replay())


def test_a_line_that_is_a_folder_or_absent_is_named(place: Place) -> None:
    words = [str(place.lines), "is a folder", "toy.yaml"]
    place.refuses(2, words, "replay", "--line", place.lines, "--data", place.data)
    gone = place.lines / "gone.yaml"
    words = [str(gone), "no such line file", "there are: toy.yaml"]
    place.refuses(2, words, "replay", "--line", gone, "--data", place.data)
    place.refuses(2, ["'candles'", "known: toy"], "up", "--line", "candles")


# what does not fit in the data


def test_a_missing_data_folder_is_named(place: Place) -> None:
    gone = place.root / "nowhere"
    words = [str(gone), "no such data folder", "--data"]
    place.refuses(3, words, "replay", "--line", place.yaml, "--data", gone, "--json", place.result)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["toy.csv", "no such file", "there is: nothing"]),
        ("", ["toy.csv", "the file is empty", "a row for each event"]),
        ("id,at,item,hit\n", ["toy.csv", "no rows", "a row for each event"]),
        (
            "id,at,hit\na,2024-01-01,1\n",
            ["columns.item", "'item'", "which the file lacks", "hit (BIGINT)"],
        ),
        # DuckDB alone would read `at` as a keyword and `user` as the name of its session
        ("id,item,hit\na,x,1\n", ["impressions.time", "'at'", "which the file lacks"]),
        ("id,at,item,hit\na,soon,x,1\n", ["1 of 1 rows", "'soon'", "correct"]),
    ],
    ids=["absent", "empty", "header only", "column", "time", "clock"],
)
def test_a_file_that_does_not_fit_is_named(
    place: Place, text: str | None, words: list[str]
) -> None:
    if text is not None:
        (place.data / "toy.csv").write_text(text, encoding="utf-8")
    place.refuses(3, words, *place.replay())
    assert not place.result.parent.exists()


def test_a_torn_gzip_is_named(place: Place) -> None:
    place.declare(changed("source.impressions.path", "toy.parquet.gz"))
    (place.data / "toy.parquet.gz").write_bytes(b"\x1f\x8b\x08\x00torn")
    place.refuses(3, ["toy.parquet.gz", "not readable as parquet"], *place.replay())


@pytest.mark.slow
def test_unsorted_and_repeated_rows_are_counted_and_no_error(place: Place) -> None:
    rows = place.rows()
    place.save([*reversed(rows), *rows[:5], {**rows[0], "id": "x", "at": "soon"}])
    ended = place.headrace(*place.replay())
    assert (ended.code, ended.err) == (0, "")
    assert "86 rows: 5 duplicates, 84 unsorted, 1 malformed, 0 unmatched" in ended.out
    assert "'soon' is not a time" in ended.out
    counts = json.loads(place.result.read_text(encoding="utf-8"))["counts"]
    assert (counts["duplicates"], counts["unsorted"], counts["unaccounted"]) == (5, 84, 0)
    assert [path.name for path in place.result.parent.iterdir()] == ["toy.json"]


# results that cannot be written


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


# versions, windows, verbs


def test_a_wrong_pipeline_is_named(place: Place) -> None:
    words = ["'train'", "incremental_train or full_train"]
    place.refuses(2, words, "run", "train", "--line", "toy")


def test_an_unknown_version_is_named(place: Place) -> None:
    place.refuses(3, ["'v9'", "'toy'", "known: none"], "line", "show", "v9", "--line", "toy")
    place.store(versions=2)
    known = ["'v9'", "known: v000001, v000002"]
    place.refuses(3, known, "line", "show", "v9", "--line", "toy")
    place.refuses(3, known, "line", "promote", "v9", "--line", "toy")
    refused = ["v000001", "no passed verdict"]
    place.refuses(7, refused, "line", "promote", "v000001", "--line", "toy")


def test_a_rollback_to_nothing_is_named(place: Place) -> None:
    place.refuses(3, ["no champion yet", "promote"], "line", "rollback", "--line", "toy")
    store = place.store(versions=2, champions=1)
    words = ["no champion but 'v000001'", "name a version"]
    place.refuses(3, words, "line", "rollback", "--line", "toy")
    place.refuses(3, ["'v9'", "known:"], "line", "rollback", "--to", "v9", "--line", "toy")
    assert len(store.history()) == 1


def test_a_version_is_promoted_by_force_compared_verified_and_pinned(place: Place) -> None:
    store = place.store(versions=3, champions=1)
    forced = place.headrace("line", "promote", "v000003", "--force", "--json", "--line", "toy")
    assert json.loads(forced.out)["action"] == "force"
    back = place.headrace("line", "rollback", "--json", "--line", "toy")
    assert json.loads(back.out)["version"] == "v000001"
    told = json.loads(
        place.headrace("line", "diff", "v000001", "v000003", "--json", "--line", "toy").out
    )
    assert told["arrays"] == {"w": {"rows": 1, "of": 1}}
    shown = place.headrace("line", "diff", "v000001", "v000003", "--line", "toy")
    assert "w: 1 of 1 rows differ" in shown.out
    assert place.headrace("line", "pin", "v000002", "--line", "toy").code == 0
    assert store.files.exists("versions/v000002/pin.json")
    assert place.headrace("line", "unpin", "v000002", "--line", "toy").code == 0
    assert not store.files.exists("versions/v000002/pin.json")
    done = json.loads(place.headrace("line", "upkeep", "--once", "--line", "toy").out)
    assert done["compacted"] is None
    listed = json.loads(place.headrace("line", "list", "--json", "--line", "toy").out)
    assert [version["pruned"] for version in listed["versions"]] == [False] * 3
    assert "3 versions hold" in place.headrace("line", "verify", "--line", "toy").out


def test_a_damaged_version_is_named_by_verify(place: Place) -> None:
    store = place.store(versions=2)
    store.files.replace("versions/v000002/state.safetensors.zst", b"torn")
    words = ["1 of 2 versions are damaged", "v000002", "SHA-256"]
    place.refuses(6, words, "line", "verify", "--line", "toy")
    told = json.loads(place.headrace("line", "verify", "--json", "--line", "toy").out)
    assert [each["outcome"] for each in told] == ["sound", "damaged"]


def test_a_near_miss_of_a_version_is_answered_with_its_neighbours(place: Place) -> None:
    place.store(versions=2)
    place.refuses(
        3, ["'v000003'", "did you mean"], "line", "diff", "v000001", "v000003", "--line", "toy"
    )


def test_an_unknown_window_cannot_be_released(place: Place) -> None:
    Quarantine(place.home / "lines" / "toy").add(3, 5, ["why"])
    verb = ("quarantine", "release")
    place.refuses(3, ["4-5", "no such interval", "3-5"], *verb, "4-5", "--line", "toy")
    for wrong in ("five", "3", "3-", "²-5"):
        place.refuses(2, [f"'{wrong}'", "FROM-TO"], *verb, wrong, "--line", "toy")
    assert place.headrace(*verb, "3-5", "--line", "toy").code == 0


def test_a_wrong_verb_or_option_is_named(place: Place) -> None:
    place.refuses(2, ["'candle'", "headrace --help"], "candle")
    place.refuses(2, ["--candle", "headrace --help"], "lines", "--candle")
    ended = place.headrace("line")
    assert ended.code == 2
    assert ended.err.startswith("Usage: ")


@pytest.mark.parametrize(("raised", "code"), [(typer.Exit(1), 1), (KeyboardInterrupt(), 130)])
def test_the_exit_code_of_a_verb_is_that_of_the_command(
    place: Place, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    def fail(_folder: Path) -> None:
        raise raised

    monkeypatch.setattr("headrace.cli.declared.load_lines", fail)
    assert place.headrace("lines").code == code
