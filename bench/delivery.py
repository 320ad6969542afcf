"""A delta against a full export: bytes and seconds from trained rows to a serving model.

One line with a table of 1 M rows x 16 float32 (embeddings of 8 with their Adagrad sums), 44 k rows
touched by each increment. *Delta*: what changed is fingerprinted, encoded, written and synced,
then read by a server that follows the line, checked, applied to the waiting model, warmed and
flipped in. *Full*: the same version as a whole state, written, then read, checked and loaded
into a new model, which is what a server without deltas does. The waiting model is one version
behind the serving one, so each flip applies two deltas. Wall and CPU of one process, interleaved,
medians; goals are of CPU, which a busy machine does not stretch. Beside it, requests of 100
candidates scored without pause, with a swap every 200 ms and without: their 99th percentiles.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from bench._measure import SEED, at_most, equality
from headrace.declaration import LineSpec
from headrace.events import input_fields
from headrace.line import About, LineStore, Version
from headrace.line.fingerprint import carried, held_by
from headrace.model import Model, State
from headrace.model.delta import apply, same_bits
from headrace.serving.swap import Follower

FIELDS: Final = 8
SWAP_S: Final = 0.2
ABOUT: Final[About] = {
    "from_tick": 0, "to_tick": 1, "excluded": [], "watermark_us": 0, "event_at_us": 0,
    "feature_service": "bench_v1", "code": "bench", "rows": 1, "metrics": {},
}  # fmt: skip


def run(*, quick: bool = False) -> dict[str, Any]:
    """Measure both ways of delivery, and scoring beside them (quick: a table of 8 k rows)."""
    bits, touched, rounds, load_s = (13, 400, 2, 0.3) if quick else (20, 44_000, 5, 3.0)
    spec = make_line(bits)
    with tempfile.TemporaryDirectory() as folder:
        bench = Delivery(spec, Path(folder), touched)
        found = [bench.round() for _ in range(rounds)]
        equal = bench.serves_what_was_published()
        still, swapped, swaps = bench.latencies(load_s, pairs=1 if quick else 3)
    middle = {key: statistics.median(each[key] for each in found) for key in found[0]}
    raw = touched * 16 * 4
    ratio = swapped / still
    delta_ms = middle["delta_write_ms"] + middle["delta_apply_ms"]
    full_ms = middle["full_write_ms"] + middle["full_load_ms"]
    return {
        "what": f"{touched} of {1 << bits} rows x 16 float32 changed, to a model that serves",
        "rows": 1 << bits,
        "touched": touched,
        "raw_bytes": raw,
        "rounds": found,
        "medians": middle,
        "p99_ms": {"without swaps": still, "with swaps": swapped, "swaps": swaps},
        "claims": [
            at_most("delta written, CPU", middle["delta_write_cpu_ms"], "ms", 100),
            at_most("delta applied and flipped in, CPU", middle["delta_apply_cpu_ms"], "ms", 50),
            at_most("bytes of a delta over its raw rows", middle["delta_bytes"] / raw, "x", 1.2),
            at_most("delta over full, from state to served, wall", delta_ms / full_ms, "x", 0.2),
            at_most("p99 of scoring with a swap every 200 ms over without", ratio, "x", 2),
            equality("base and deltas equal the published state, and the server has it", equal),
        ],
        "table": {
            "heads": ["", "delta", "full"],
            "rows": [
                [what, *(f"{middle[f'{way}_{key}']:.0f}" for way, key in keys)]
                for what, keys in (
                    ("write, ms", (("delta", "write_ms"), ("full", "write_ms"))),
                    ("write, CPU ms", (("delta", "write_cpu_ms"), ("full", "write_cpu_ms"))),
                    ("to served, ms", (("delta", "apply_ms"), ("full", "load_ms"))),
                    ("to served, CPU ms", (("delta", "apply_cpu_ms"), ("full", "load_cpu_ms"))),
                    ("bytes", (("delta", "bytes"), ("full", "bytes"))),
                )
            ],
        },
    }  # fmt: skip


def make_line(table_bits: int) -> LineSpec:
    """Eight id features, embeddings of 8 and their sums: rows of 16 float32."""
    names = [f"id_{number}" for number in range(FIELDS)]
    return LineSpec.model_validate(
        {
            "line": "bench",
            "columns": dict.fromkeys(names, "int"),
            "source": {"kind": "live"},
            "label": {"engagement": "click", "attribution_window": "1h", "provisional_after": "1s"},
            "request_features": [
                {"name": f"f_{name}", "kind": "hash", "of": name} for name in names
            ],
            "model": {
                "family": "deep",
                "categorical": [f"f_{name}" for name in names],
                "table_bits": table_bits,
                "embedding_dim": 8,
            },
        }
    )


class Delivery:
    """A line with a base, a server that follows it, and what the next increments change."""

    def __init__(self, spec: LineSpec, folder: Path, touched: int) -> None:
        self.spec = spec
        self.store = LineStore(folder, spec.line)
        self._touched = touched
        self._draw = np.random.default_rng(SEED)
        self._state = Model(spec.model, spec.seed).state()
        self._newest = self.store.publish(self._state, parent=None, **ABOUT)
        self._promote(self._newest)
        self.follower = Follower(spec, LineStore(folder, spec.line))
        self.follower.follow()
        for _ in range(2):  # both models are there and warm
            self._deliver(self._increment())

    def round(self) -> dict[str, float]:
        """Deliver one increment as a delta, and the same state as a whole."""
        changes = self.changes()
        (delta, write_ms, write_cpu) = _timed(lambda: self.publish(changes))
        self._state = apply(self._state, changes)
        self._promote(delta)
        _, apply_ms, apply_cpu = _timed(self.follower.follow)
        (full, full_ms, full_cpu) = _timed(
            lambda: self.store.publish(self._state, parent=None, **ABOUT)
        )
        _, load_ms, load_cpu = _timed(lambda: self._load(full))
        return {
            "delta_write_ms": write_ms,
            "delta_apply_ms": apply_ms,
            "delta_write_cpu_ms": write_cpu,
            "delta_apply_cpu_ms": apply_cpu,
            "delta_bytes": float(delta.size),
            "full_write_ms": full_ms,
            "full_load_ms": load_ms,
            "full_write_cpu_ms": full_cpu,
            "full_load_cpu_ms": load_cpu,
            "full_bytes": float(full.size),
        }

    def changes(self) -> State:
        """What an increment changes: some rows of the table, and every dense parameter."""
        table = self._state["table"]
        rows = np.sort(self._draw.choice(len(table), self._touched, replace=False))
        values = self._draw.random((self._touched, table.shape[1]), np.float32)
        small = {
            f"whole/{name}": self._state[name] + np.float32(0.001)
            for name in ("dense", "dense_m", "dense_v")
        }
        return {"rows/table": rows, "values/table": values, **small}

    def publish(self, changes: State) -> Version:
        """Write an increment as the trainer does: fingerprint, encode, write, sync."""
        before = int(self._newest.fingerprint, 16)
        after = carried(before, held_by(self._state), changes)
        self._newest = self.store.publish_delta(
            changes, parent=self._newest, fingerprint=after, **ABOUT
        )
        return self._newest

    def serves_what_was_published(self) -> bool:
        """Whether the store adds up to the trainer's state, and the server holds it."""
        loaded = self.follower.current()
        stored = self.store.load(self._newest.version)[1]
        return same_bits(stored, self._state) and same_bits(loaded.model.state(), self._state)

    def latencies(self, seconds: float, pairs: int) -> tuple[float, float, int]:
        """p99 of a request, ms, without swaps and with one each 200 ms, and how many swaps."""
        still: list[float] = []
        swapped: list[float] = []
        swaps = 0
        for _ in range(pairs):
            self._score(seconds, still, [])
            # written beforehand: the trainer is another process, only the server is measured
            ahead = [self._increment() for _ in range(int(seconds / SWAP_S))]
            swaps += len(ahead)
            self._score(seconds, swapped, ahead)
        return float(np.percentile(still, 99)), float(np.percentile(swapped, 99)), swaps

    def _score(self, seconds: float, into: list[float], ahead: list[Version]) -> None:
        """Score without pause for so long, or until the versions `ahead` are delivered."""
        schema = pa.schema(input_fields(self.spec))
        asked = pa.table(
            [pa.array(self._draw.integers(0, 1 << 40, 100)).cast(f.type) for f in schema],
            schema=schema,
        )
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                began = time.perf_counter()
                with self.follower.use() as loaded:
                    loaded.model.predict(asked)
                into.append(1000 * (time.perf_counter() - began))

        asking = threading.Thread(target=ask)
        asking.start()
        until = time.perf_counter() + seconds
        while ahead or time.perf_counter() < until:
            if ahead:
                self._deliver(ahead.pop(0))
            time.sleep(SWAP_S)
        stop.set()
        asking.join()

    def _increment(self) -> Version:
        changes = self.changes()
        version = self.publish(changes)
        self._state = apply(self._state, changes)
        return version

    def _deliver(self, version: Version) -> None:
        self._promote(version)
        self.follower.follow()

    def _load(self, version: Version) -> None:
        model = Model(self.spec.model, self.spec.seed)
        model.load_state(self.store.load(version.version)[1])

    def _promote(self, version: Version) -> None:
        self.store.advance(self.store.champion(), version.version, "promote", "bench")


def _timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall and CPU milliseconds of one call, all threads of this process together."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)
