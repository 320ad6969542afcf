"""What a soak looks at: each answer beside the row that was logged for it, and memory."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench._bare import LINE
from bench._load import Connection
from headrace.declaration import LineSpec
from headrace.events import input_fields, served_schema
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.model import Model
from headrace.settings import Settings

CHUNK: Final = 50_000


@dataclass(frozen=True)
class Answer:
    """One answer: when it was asked for and came (monotonic s), and what it said."""

    asked: float
    came: float
    status: int
    said: dict[str, Any]


@dataclass
class Load:
    """Requests at a pace, until it is stopped; every answer is kept.

    They come at once on all connections, so that the server scores some together.
    """

    port: int
    requests: Sequence[bytes]
    rate: float
    connections: int = 4
    answers: list[Answer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._turns = itertools.count()
        self._threads = [threading.Thread(target=self._work) for _ in range(self.connections)]

    def __enter__(self) -> Load:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        connection = Connection(self.port)
        while not self._over.is_set():
            turn = next(self._turns)  # one call into C: threads share it
            due = self._began + turn // self.connections * self.connections / self.rate
            if self._over.wait(max(0.0, due - time.monotonic())):
                break
            asked = time.monotonic()
            try:
                status, body = connection.ask(self.requests[turn % len(self.requests)])
            except OSError as problem:
                self.problems.append(str(problem))
                connection = Connection(self.port)
                continue
            self.answers.append(Answer(asked, time.monotonic(), status, json.loads(body)))
        connection.close()


@dataclass(frozen=True)
class Replayed:
    """Rows that were answered; those whose answer is not in the log; those that differ from it;
    and logged rows whose vector and version give another score.
    """

    rows: int
    unlogged: int
    misquoted: int
    wrong: int


def replay(settings: Settings, spec: LineSpec, answers: Sequence[Answer]) -> Replayed:
    """Score every logged vector again by the version that the log names, and compare all bits."""
    log = FileLog(settings.line_home(LINE) / "log" / "served", served_schema(spec))
    lines, model = LineStore(settings.line_store_url(LINE), LINE), Model(spec.model, spec.seed)
    logged: dict[str, tuple[str, float]] = {}
    wrong = 0
    parts: dict[str, list[pa.Table]] = {}
    for start in range(0, log.head, CHUNK):
        rows = log.read(start, start + CHUNK)
        ids, versions, scores = (
            rows[name].to_pylist() for name in ("impression_id", "version", "score")
        )
        logged.update(zip(ids, zip(versions, scores, strict=True), strict=True))
        for version in pc.unique(rows["version"]).to_pylist():
            of_version = rows.filter(pc.equal(rows["version"], version))
            names = [*(each.name for each in input_fields(spec)), "score"]
            parts.setdefault(version, []).append(of_version.select(names))
    for version, tables in parts.items():
        model.load_state(lines.load(version)[1])
        rows = pa.concat_tables(tables).combine_chunks()
        again = model.predict(rows.drop_columns(["score"]))
        wrong += int(np.count_nonzero(again != rows["score"].to_numpy()))
    count = unlogged = misquoted = 0
    for answer in answers:
        for row in answer.said.get("scores", []):
            count += 1
            held = logged.get(row["impression_id"])
            unlogged += held is None
            misquoted += held is not None and held != (answer.said["version"], row["score"])
    return Replayed(count, unlogged, misquoted, wrong)


class Memory:
    """Private memory of a process, looked at each second: anonymous pages, MiB.

    Pages of files are left out: the kernel takes them back when it likes.
    """

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.mib: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def growth(self) -> float:
        """The median of the last fifth over that of the second fifth, once all is loaded."""
        fifth = max(1, len(self.mib) // 5)
        return float(np.median(self.mib[-fifth:]) / np.median(self.mib[fifth : 2 * fifth]))

    def _look(self) -> None:
        while not self._over.wait(1.0):
            told = self._status.read_text(encoding="ascii")
            found = re.search(r"RssAnon:\s+(\d+) kB", told)
            if found:
                self.mib.append(int(found[1]) / 1024)
