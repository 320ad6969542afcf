"""History for training: a million rows asked of three views, through Feast and by hand.

Each engine answers in a process of its own over the same parts, one for every tick, as ingest
writes them. `headrace` is `get_historical_features` with this project's offline store, `feast`
the same call with Feast's own DuckDB store, `duckdb` three ASOF joins written by hand and
`polars` three `join_asof`. The time to import is not counted, the memory is. Interleaved, medians.
`inputs` is `Store.read_history`: the same join with the line's model inputs computed on top.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from bench._measure import DAY_US, ITEMS, SEED, USERS, at_most, equality, present, six_windows
from bench._process import in_a_process, read_arrow, tell
from headrace.atomic import write_arrow
from headrace.declaration import LineSpec
from headrace.events import TIME
from headrace.feature_rows import feature_part
from headrace.settings import PROJECT, Settings, find_line, load_settings

GIB = 2**30
SPAN_US = 10 * DAY_US
ROUNDS = {"headrace": 3, "duckdb": 3, "polars": 3, "inputs": 3, "feast": 1}


def run(*, quick: bool = False) -> dict[str, Any]:
    """Ask 1 M rows of 3 views of 1 M rows in 1,000 parts (quick: 20 k in 10) of each engine."""
    rows, ticks = (20_000, 10) if quick else (1_000_000, 1_000)
    engines = [name for name in ROUNDS if name != "polars" or present("polars")]
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    peak: dict[str, float] = dict.fromkeys(engines, 0.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder, rows, ticks)
        for turn in range(1 if quick else 3):
            for engine in engines:
                if turn < ROUNDS[engine]:
                    told = _answer(engine, folder, quick)
                    seconds[engine].append(told["cpu_s"])
                    peak[engine] = max(peak[engine], told["peak_bytes"] / GIB)
        answers = [read_arrow(folder / f"{name}.arrow") for name in engines]
        same = len({_digest(answer) for answer in answers}) == 1
    ratio = _ratio(seconds["headrace"], seconds["duckdb"])
    return {
        "what": "history of three window views at a million moments, through Feast",
        "rows": rows,
        "peers": {name: version(name) for name in ("duckdb", "feast", "polars") if name in seconds},
        "cpu_s": seconds,
        "peak_gib": peak,
        "claims": [
            equality("bit-equal to every peer", same),
            at_most("CPU of history over hand-written DuckDB ASOF", ratio, "x", 1.5),
            at_most(
                "CPU of history over Feast's DuckDB store",
                statistics.median(seconds["headrace"]) / statistics.median(seconds["feast"]),
                "x",
                0.5,
            ),
            at_most("peak memory of history", peak["headrace"], "GiB", 3.0),
            at_most(
                "CPU of history with model inputs over history",
                _ratio(seconds["inputs"], seconds["headrace"]),
                "x",
                2.0,
            ),
        ],
    }


def _answer(engine: str, folder: Path, quick: bool) -> dict[str, Any]:
    if quick:  # in this process: to import Feast takes longer than to answer
        return tell(engine, folder, ENGINES[engine](folder))
    return in_a_process("bench.historical", engine, folder)


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _prepare(folder: Path, rows: int, ticks: int) -> None:
    """Apply the line, write its parts, the rows asked, and a copy of the repository for Feast."""
    from headrace.store import Store

    spec = six_windows()
    (folder / "lines").mkdir()
    declared = spec.model_dump(mode="json", exclude_unset=True)
    (folder / "lines" / "bench.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    settings = settings_of(folder)
    Store(settings).apply()
    rng = np.random.default_rng(SEED)
    for view in spec.views:
        write_parts(spec, view, parts_of(folder, view), rng, (rows, ticks))
    asked = {
        "user_id": rng.integers(0, USERS, rows),
        "item_id": _items(rng, rows),
        "event_timestamp": pa.array(rng.integers(0, SPAN_US, rows)).cast(TIME),
        "row": np.arange(rows),
    }
    write_arrow(folder / "asked.arrow", pa.table(asked))
    shutil.copytree(settings.home / "feast", folder / "stock")
    config = folder / "stock" / "feature_store.yaml"
    stock = yaml.safe_load(config.read_text(encoding="utf-8")) | {
        "offline_store": {"type": "duckdb"}
    }
    config.write_text(yaml.safe_dump(stock), encoding="utf-8")


def settings_of(folder: Path) -> Settings:
    """Settings of a line declared in the folder."""
    return load_settings(
        {
            "HEADRACE_HOME": str(folder / "home"),
            "HEADRACE_LINES_DIR": str(folder / "lines"),
            "HEADRACE_FEATURE_REPO": str(PROJECT / "feature_repo"),
        }
    )


def _items(rng: np.random.Generator, rows: int) -> Any:
    return (ITEMS * rng.random(rows) ** 3).astype(np.int64)


def write_parts(
    spec: LineSpec, view: str, folder: Path, rng: np.random.Generator, size: tuple[int, int]
) -> None:
    """`size` is rows and parts: a key stands once in a part, hot items in most."""
    rows, ticks = size
    drawn = {"user_id": rng.integers(0, USERS, 3 * rows), "item_id": _items(rng, 3 * rows)}
    key = spec.views[view][0].key
    codes = np.arange(3 * rows) % ticks
    for name in key:
        codes = codes * USERS + drawn[name]
    codes = np.unique(codes)
    codes = np.sort(rng.choice(codes, rows, replace=False))
    table: dict[str, Any] = {}
    for name in reversed(key):
        codes, table[name] = np.divmod(codes, USERS)
    table["event_timestamp"] = pa.array((codes + 1) * (SPAN_US // ticks)).cast(TIME)
    for feature in spec.views[view]:
        table[feature.name] = rng.integers(1, 1000, rows)  # 0 is for absent
    part = feature_part(spec, view, pa.table(table))
    starts = np.searchsorted(codes, np.arange(ticks + 1))
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        pq.write_table(part.slice(start, stop - start), folder / f"b={number:08d}.parquet")


def _digest(answer: pa.Table) -> str:
    """Of the window values in the order asked; what an absent key has is 0 for `read_history`."""
    digest = hashlib.sha256()
    by_row = np.argsort(answer["row"].to_numpy())
    for feature in six_windows().windows:
        digest.update(answer[feature.name].fill_null(0).to_numpy()[by_row].tobytes())
    return digest.hexdigest()


def _through_feast(repo: Path, folder: Path) -> Callable[[], pa.Table]:
    from feast import FeatureStore

    store, spec = FeatureStore(repo_path=str(repo)), six_windows()
    names = [f"{view}:{feature.name}" for view, found in spec.views.items() for feature in found]
    asked = read_arrow(folder / "asked.arrow")

    def answer(rows: pa.Table = asked) -> pa.Table:
        job = store.get_historical_features(entity_df=rows.to_pandas(), features=names)
        found: pa.Table = job.to_arrow()
        return found

    answer(asked.slice(0, 1))  # Feast and ibis import much when they are first asked
    return answer


def _with_inputs(folder: Path) -> Callable[[], pa.Table]:
    from headrace.store import Store

    _through_feast(folder / "home" / "feast", folder)  # imports what Feast needs
    settings = settings_of(folder)
    store, spec = Store(settings), find_line(settings, "bench")
    asked = read_arrow(folder / "asked.arrow")
    request_at = asked["event_timestamp"].cast(pa.int64())

    def answer() -> pa.Table:
        found = store.read_history(spec, asked.append_column("request_at", request_at))
        return found.append_column("row", asked["row"])

    return answer


def _asof_sql(folder: Path) -> Callable[[], pa.Table]:
    selected, joins = [], []
    for view, features in six_windows().views.items():
        on = " AND ".join(f"{view}.{column} = asked.{column}" for column in features[0].key)
        selected += [f"{view}.{feature.name}" for feature in features]
        joins.append(
            f"ASOF LEFT JOIN read_parquet('{parts_of(folder, view)}/*.parquet') {view} "
            f"ON {on} AND asked.event_timestamp >= {view}.event_timestamp"
        )
    sql = f"SELECT asked.row, {', '.join(selected)} FROM asked {' '.join(joins)}"
    connection = duckdb.connect()
    connection.register("asked", read_arrow(folder / "asked.arrow"))
    return lambda: connection.sql(sql).to_arrow_table()


def _polars(folder: Path) -> Callable[[], pa.Table]:
    import polars as pl

    def answer() -> pa.Table:
        asked = pl.from_arrow(read_arrow(folder / "asked.arrow")).lazy().sort("event_timestamp")
        for view, features in six_windows().views.items():
            names = [*features[0].key, "event_timestamp", *(feature.name for feature in features)]
            rows = pl.scan_parquet(parts_of(folder, view) / "*.parquet").select(names)
            asked = asked.join_asof(
                rows.sort("event_timestamp"),
                on="event_timestamp",
                by=list(features[0].key),
                check_sortedness=False,  # it cannot be, by key
            )
        found: pa.Table = asked.collect().to_arrow()
        return found

    return answer


def parts_of(folder: Path, view: str) -> Path:
    """Where a view's parts are."""
    return settings_of(folder).line_home("bench") / "features" / view


ENGINES: dict[str, Callable[[Path], Callable[[], pa.Table]]] = {
    "headrace": lambda folder: _through_feast(folder / "home" / "feast", folder),
    "duckdb": _asof_sql,
    "polars": _polars,
    "inputs": _with_inputs,
    "feast": lambda folder: _through_feast(folder / "stock", folder),
}

if __name__ == "__main__":
    name, place = sys.argv[1], Path(sys.argv[2])
    sys.stdout.write(json.dumps(tell(name, place, ENGINES[name](place))) + "\n")
