"""The trainer core against its peers on one click stream, and what a delta costs.

Every engine learns the same rows in order in a process of its own, a part at a time; the parts
of all engines are interleaved, and a figure is the median over parts: CPU seconds of the process,
all its threads (of a delta, wall time stands beside it). AUC is on later rows that nobody
learned. LightGBM, River and Keras 3 with the same small batches, which would take an hour, learn
the first rows of each part; Keras 3 with large batches learns all.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import safetensors.numpy
import zstandard

from bench import _clicks
from bench._measure import SEED, at_least, at_most, equality, not_measured, present
from bench._trainers import BATCH, Session
from headrace.declaration import ModelSpec
from headrace.model import Model
from headrace.model.delta import State, same_bits

PEERS: Final = {  # engine to the package that it needs, and the share of each part that it learns
    "vowpalwabbit": ("vowpalwabbit", 1.0),
    "keras@21": ("keras", 0.06),
    "keras_large@21": ("keras", 1.0),
    "tf_keras@21": ("tf_keras", 1.0),
    "lightgbm": ("lightgbm", 0.05),
    "river": ("river", 0.02),
}
OURS: Final = ("ftrl@22", "ftrl_deep@22")
WHOLE: Final = (1_000_000, 200_000, 4)
"""Rows that are learned, later rows that give the AUC, parts in which engines take turns."""
QUICK: Final = (3_000, 1_000, 2)
BITS: Final = (20, 23, 26)
"""Of the tables whose steps are compared: 1, 8 and 67 M rows."""
NEEDED_BYTES: Final = 14 << 30
"""Memory in which the largest table of embeddings is drawn and copied."""
TOUCHED: Final = 44_000


def run(*, quick: bool = False) -> dict[str, Any]:
    """Learn the stream with every engine, then tables of three sizes, then deltas."""
    rows, later, parts = QUICK if quick else WHOLE
    peers = {name: peer for name, peer in PEERS.items() if present(peer[0])}
    if quick:  # TensorFlow and River start too slowly for a smoke run
        peers = {name: peers[name] for name in ("vowpalwabbit",) if name in peers}
    shares = dict.fromkeys(OURS[:1] if quick else OURS, 1.0)
    shares |= {name: share for name, (_, share) in peers.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = _clicks.write(folder, rows, later)
        found = _race(
            Session if quick else _Process, folder, shares, rows=rows, later=later, parts=parts
        )
        sizes = [] if quick else _sizes(folder, rows, later, parts)
        deltas = _deltas(12 if quick else 20, 500 if quick else TOUCHED, folder)
    tables = {name: figures for family in sizes for name, figures in family.items()}
    return {
        "what": "13 numbers, 26 id fields, 8 crosses: CPU per sample and AUC on later rows",
        "batch": BATCH,
        "rows": rows,
        "world": world,
        "peers": {name.partition("@")[0]: found[name] for name in shares if name in peers},
        "ours": {name.partition("@")[0]: found[name] for name in shares if name in OURS},
        "tables": tables,
        "delta": deltas,
        "claims": [
            *_delta_claims(deltas),
            *_trainer_claims(found),
            *(_size_claim(family) for family in sizes),
        ],
        "table": {
            "heads": ["engine@bits of its table", "rows learned", "CPU µs a sample", "AUC"],
            "rows": [
                [name, f"{told['rows']:,}", f"{told['us']:.2f}", f"{told['auc']:.4f}"]
                for name, told in (found | tables).items()
            ],
        },
    }


def _race(
    kind: type[Session] | type[_Process],
    folder: Path,
    shares: dict[str, float],
    *,
    rows: int,
    later: int,
    parts: int,
) -> dict[str, dict[str, Any]]:
    """CPU µs per sample of each part, and the AUC, of each engine."""
    engines = {}
    for name in shares:
        own = folder / name
        own.mkdir(exist_ok=True)
        engines[name] = kind(name, folder, own)
    cost: dict[str, list[float]] = {name: [] for name in shares}
    aucs: dict[str, float] = {}
    try:
        for part in range(parts):
            start, stop = rows * part // parts, rows * (part + 1) // parts
            for name, share in shares.items():
                end = start + max(int((stop - start) * share), 1)
                seconds = engines[name].ask(f"learn {start} {end}")
                cost[name].append(1e6 * seconds / (end - start))
        for name, share in shares.items():
            stop = rows + max(int(later * min(1.0, 10 * share)), 500)
            aucs[name] = engines[name].ask(f"score {rows} {stop}")
    finally:
        for engine in engines.values():
            if isinstance(engine, _Process):
                engine.close()
    return {
        name: {
            "us": statistics.median(cost[name]),
            "us_of_parts": cost[name],
            "rows": int(rows * share),
            "auc": aucs[name],
        }
        for name, share in shares.items()
    }


class _Process:
    """An engine that lives in a process of its own; see bench/_trainers.py."""

    def __init__(self, name: str, folder: Path, own: Path) -> None:
        self._errors = (own / "errors.txt").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench._trainers", name, str(folder), str(own)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
        )
        self._answer()

    def ask(self, command: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._answer()))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"an engine ended: {self._errors.read()[-2000:]}")
        return line

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()


def _trainer_claims(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    ftrl, deep = found["ftrl@22"], found.get("ftrl_deep@22")
    claims = []
    if "vowpalwabbit" in found:
        peer = found["vowpalwabbit"]
        claims += [
            at_most("CPU of ftrl over Vowpal Wabbit's FTRL", ftrl["us"] / peer["us"], "x", 1.0),
            at_least("AUC of ftrl over Vowpal Wabbit's", ftrl["auc"] - peer["auc"], "AUC", -0.001),
        ]
    else:
        claims.append(not_measured("ftrl against Vowpal Wabbit", "vowpalwabbit"))
    if deep is None:
        return claims
    claims.append(at_most("CPU per sample, ftrl_deep", deep["us"], "µs", 12.0))
    if "keras@21" in found:
        ratio = found["keras@21"]["us"] / deep["us"]
        claims.append(at_least("CPU of Keras 3 fit over ftrl_deep", ratio, "x", 5.0))
    for name, (package, _) in PEERS.items():
        claim = f"AUC of ftrl_deep over {name.partition('@')[0]}"
        if name in found:
            claims.append(at_least(claim, deep["auc"] - found[name]["auc"], "AUC", 0.0))
        else:
            claims.append(not_measured(claim, package))
    return claims


def _sizes(folder: Path, rows: int, later: int, parts: int) -> list[dict[str, dict[str, Any]]]:
    """The step of each family in tables of `BITS`; of embeddings only where memory allows."""
    families = ("ftrl", "ftrl_deep_8") if _available_bytes() > NEEDED_BYTES else ("ftrl",)
    return [
        _race(
            _Process,
            folder,
            {f"{family}@{bits}": 0.2 for bits in BITS},
            rows=rows,
            later=later,
            parts=parts,
        )
        for family in families
    ]


def _available_bytes() -> int:
    told = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    return 1024 * int(told[1]) if told else 0


def _size_claim(sizes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    smallest, *_, largest = [figures["us"] for figures in sizes.values()]
    family = next(iter(sizes)).partition("@")[0]
    rows = [f"2^{name.partition('@')[2]}" for name in sizes]
    name = f"CPU per sample, {family} in a table of {rows[-1]} rows over one of {rows[0]}"
    return at_most(name, largest / smallest, "x", 1.3)


def _deltas(bits: int, touched: int, folder: Path) -> dict[str, Any]:
    """Milliseconds to write and to apply what `touched` rows of a table changed."""
    spec = ModelSpec(family="ftrl_deep", categorical=("id",), table_bits=bits, embedding_dim=16)
    writer, reader = Model(spec, SEED), Model(spec, SEED)
    ids = np.arange(touched)
    samples = pa.table(
        {
            "id": ids,
            "positive_weight": (ids % 2).astype(np.float32),
            "negative_weight": (1 - ids % 2).astype(np.float32),
        }
    )
    found: dict[str, list[tuple[float, float]]] = {
        name: [] for name in ("write", "apply", "export", "load")
    }
    for _ in range(5):
        writer.mark()
        writer.learn(samples)
        found["write"].append(_ms(lambda: _save(folder / "delta", writer.delta())))
        found["apply"].append(_ms(lambda: reader.apply(_load(folder / "delta"))))
    equal = same_bits(writer.state(), reader.state())
    found["export"].append(_ms(lambda: _save(folder / "full", writer.state())))
    found["load"].append(_ms(lambda: reader.load_state(_load(folder / "full"))))
    delta = writer.delta()
    return {
        "rows": len(delta["rows/table"]),
        "raw_bytes": delta["values/table"].nbytes,
        "bytes": (folder / "delta").stat().st_size,
        "full_bytes": (folder / "full").stat().st_size,
        "cpu_ms": {name: statistics.median(cpu for cpu, _ in ms) for name, ms in found.items()},
        "wall_ms": {name: statistics.median(wall for _, wall in ms) for name, ms in found.items()},
        "equal": equal,
    }


def _save(path: Path, state: State) -> None:
    packed = zstandard.ZstdCompressor().compress(safetensors.numpy.save(state))
    with path.open("wb") as file:
        file.write(packed)
        file.flush()
        os.fsync(file.fileno())


def _load(path: Path) -> State:
    raw = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    return dict(safetensors.numpy.load(raw))


def _ms(function: Callable[[], None]) -> tuple[float, float]:
    """CPU and wall milliseconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)


def _delta_claims(delta: dict[str, Any]) -> list[dict[str, Any]]:
    rows = f"delta of {delta['rows']:,} rows of 34 numbers"
    return [
        equality(f"{rows}: applied in place, it gives the full state", delta["equal"]),
        at_most(f"{rows}: written, CPU", delta["cpu_ms"]["write"], "ms", 100.0),
        at_most(f"{rows}: read and applied, CPU", delta["cpu_ms"]["apply"], "ms", 50.0),
        at_most(f"{rows}: bytes over raw rows", delta["bytes"] / delta["raw_bytes"], "x", 1.2),
    ]
