"""A streamed line for the tests of `headrace stream`: its events, vectors, and a driver process.

Run as a script it is the driver: the real service, but for a clock that follows from the log, so
that two runs over the same batches leave the same bytes, and an online store that nobody reads.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from headrace.declaration import LineSpec
from headrace.events import event_schema, served_schema
from headrace.ingest.tick import resume, run_tick
from headrace.log.files import FileLog
from headrace.sample import TickManifest, ticks
from headrace.settings import PROJECT, load_settings
from headrace.stream.service import run
from headrace.stream.source import parse
from tests.campaign import Nowhere

SECOND = 1_000_000
T0 = 1_700_000_000 * SECOND
SPEC = LineSpec.model_validate(yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text()))
QUICK_START = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # half the CPU of a short run
MALFORMED = ('{"event": "buy"}', "not json", '{"event": "impression", "impression_id": "x"}')


def events(count: int, seed: int) -> list[dict[str, Any]]:
    """A lively campaign as applications send it: one in seven clicks, some twice, some orphaned."""
    rng = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for number in range(count):
        at = T0 + number * SECOND // 10
        shown = {"event": "impression", "impression_id": f"i{number}", "event_at": at}
        shown |= {"user_id": f"u{rng.integers(20)}", "item_id": f"c{rng.integers(6)}"}
        shown |= {"category": "x", "discount": float(rng.integers(9)) / 10, "position": 1}
        found.append(shown)
        if rng.random() < 0.03:
            found.append(shown)
        if rng.random() < 0.15:
            who = f"i{number}" if rng.random() < 0.9 else f"nobody{number}"
            click = {"event": "click", "impression_id": who, "event_at": at + SECOND}
            found.append(click)
    return found


def prepare(home: Path, count: int) -> None:
    """The served log: a vector for every impression, logged before it."""
    schema = served_schema(SPEC)
    blank = {field.name: None if field.nullable else 0 for field in schema}
    blank |= {"request_id": "r", "version": "v000001"}
    log = FileLog(home / "lines" / SPEC.line / "log" / "served", schema, writer=True)
    log.append(
        pa.Table.from_pylist(
            [
                blank | {"impression_id": f"i{n}", "served_at": T0 + n * SECOND // 10 - 1}
                for n in range(count)
            ],
            schema=schema,
        )
    )
    log.close()


def start(home: Path, source: str, **options: Any) -> subprocess.Popen[str]:
    """The driver, in a process group of its own; it prints a line when it takes its first batch."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.spark.streaming", str(home), source, json.dumps(options)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=(home.parent / f"{home.name}.err").open("a"),
        text=True,
        start_new_session=True,
        env=os.environ | {"JDK_JAVA_OPTIONS": QUICK_START},
    )


def end(process: subprocess.Popen[str], timeout: float = 240) -> int:
    """Wait for its end; whatever happens, leave nothing of its group behind."""
    with process:
        try:
            return process.wait(timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run_with_kills(home: Path, source: str, kills: int, within_s: float, **options: Any) -> int:
    """Run to the end through that many kill -9, of the driver alone or with its JVM.

    Each comes up to `within_s` after a first batch was taken. Returns how many fell into a run.
    """
    dice, fell = random.Random(5), 0
    for number in range(kills):
        process = start(home, source, **options)
        process.stdout.readline()
        time.sleep(dice.uniform(0, within_s))
        if process.poll() is None:
            fell += 1
            if number % 2:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        end(process)
    assert end(start(home, source, **options)) == 0
    return fell


def log_rows(home: Path) -> list[dict[str, Any]]:
    """The event log, without the stamps."""
    log = FileLog(home / "lines" / SPEC.line / "log" / "events", event_schema(SPEC))
    return log.read(0, log.head).drop_columns(["arrival_at"]).to_pylist()


def live_again(stormy: Path, calm: Path) -> list[TickManifest]:
    """The same logs lived in another home without a disturbance, tick by tick; its manifests."""
    ours, home = (root / "lines" / SPEC.line for root in (stormy, calm))
    shutil.copytree(ours / "log", home / "log")
    state = resume(SPEC, home)
    for manifest in ticks(ours):
        plan = state.plan(manifest.events[1])
        assert plan is not None
        run_tick(state, plan, Nowhere().push)
    return ticks(home)


def tree(home: Path) -> dict[str, bytes]:
    """Every file of the line but Spark's own and the query's name, and what the event log holds.

    How its records are spread over segments depends on when these were joined.
    """
    line = home / "lines" / SPEC.line
    beside = (line / "stream", line / "log" / "events")
    found = {
        str(path.relative_to(line)): path.read_bytes()
        for path in sorted(line.rglob("*"))
        if path.is_file() and path.name != ".lock" and not {*path.parents} & {*beside}
    }
    log = FileLog(line / "log" / "events", event_schema(SPEC))
    return found | {"log/events": repr(log.read(0, log.head).to_pylist()).encode()}


def main(home: Path, source: str, at_once: int, once: bool = True) -> None:
    """The service, with a sign of life when it asks for the time."""
    settings = load_settings(dict(os.environ) | {"HEADRACE_HOME": str(home)})
    segments = settings.line_home(SPEC.line) / "log" / "events"

    def clock() -> int:
        print("taken", flush=True)  # noqa: T201
        head = FileLog(segments, event_schema(SPEC)).head
        return T0 + 60 * SECOND + head * SECOND // 10

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    read = replace(parse(source), at_once=at_once)
    run(settings, SPEC, read, stop, once=once, online=Nowhere(), clock=clock)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], **json.loads(sys.argv[3]))
