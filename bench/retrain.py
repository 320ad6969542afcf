"""A full training over a history ten times as long: the memory and the CPU that it takes.

Each history, of 200 thousand and of 2 million samples, is trained on in a process of its own:
features joined through Feast in chunks, rows spilled and read again for a second epoch. Peak
memory is the process's own, TensorFlow and Feast and the spill's mapped pages included.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from bench._measure import ITEMS, SEED, USERS, at_most, equality, six_windows
from bench._process import in_a_process, tell
from bench.historical import SPAN_US, parts_of, settings_of, write_parts
from headrace.atomic import write_json
from headrace.declaration import LineSpec
from headrace.events import TIME, event_schema, sample_schema
from headrace.log.files import FileLog
from headrace.sample import TickManifest
from headrace.settings import find_line

GIB = 2**30
TICKS = 200


def run(*, quick: bool = False) -> dict[str, Any]:
    """Train on 200 k and on 2 M samples (quick: 2 k and 4 k, in this process)."""
    sizes = (2_000, 4_000) if quick else (200_000, 2_000_000)
    told = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _prepare(folder, rows)
            if quick:
                told.append(tell("train", folder, lambda: _train(folder)))  # noqa: B023
            else:
                told.append(in_a_process("bench.retrain", "train", folder))
            learned = pa.ipc.open_file(folder / "train.arrow").read_all()["rows"][0].as_py()
            told[-1]["all"] = learned == rows
    small, large = told
    return {
        "what": "full training over a history ten times as long",
        "rows": list(sizes),
        "peers": {},
        "cpu_s": [one["cpu_s"] for one in told],
        "peak_gib": [one["peak_bytes"] / GIB for one in told],
        "claims": [
            equality("every sample is learned", all(one["all"] for one in told)),
            at_most(
                "peak memory over that of a tenth of the rows",
                large["peak_bytes"] / small["peak_bytes"],
                "x",
                1.5,
            ),
            at_most("peak memory of the long one", large["peak_bytes"] / GIB, "GiB", 3.0),
            at_most(
                "CPU a row, join and two epochs",
                large["cpu_s"] / sizes[1] * 1e6,
                "µs",
                60.0,
            ),
        ],
    }


def _train(folder: Path) -> pa.Table:
    from headrace import train
    from headrace.line import LineStore

    settings = settings_of(folder)
    spec = find_line(settings, "bench")
    started = time.monotonic()
    version = train.full(settings, spec, TICKS)
    store = LineStore(settings.line_store_url("bench"), "bench")
    seconds = time.monotonic() - started
    return pa.table({"rows": [store.get(version).rows], "seconds": [seconds]})


def _spec() -> LineSpec:
    spec = six_windows().model_dump(mode="json", exclude_unset=True)
    names = [window["name"] for window in spec["windows"]]
    hashes = [{"name": key, "kind": "hash", "of": f"{key}_id"} for key in ("user", "item")]
    logs = [{"name": f"{name}_log", "kind": "log1p", "of": name} for name in names]
    model = {"categorical": ["user", "item"], "numeric": [log["name"] for log in logs]}
    spec |= {"request_features": hashes + logs, "model": model | {"batch_size": 512, "epochs": 2}}
    return LineSpec.model_validate(spec)


def _prepare(folder: Path, rows: int) -> None:
    """Apply the line, write the parts of its views, and its samples in `TICKS` ticks."""
    from headrace.store import Store

    spec = _spec()
    (folder / "lines").mkdir()
    declared = spec.model_dump(mode="json", exclude_unset=True)
    (folder / "lines" / "bench.yaml").write_text(
        yaml.safe_dump(declared, sort_keys=False), encoding="utf-8"
    )
    settings = settings_of(folder)
    Store(settings).apply()
    rng = np.random.default_rng(SEED)
    for view in spec.views:
        write_parts(spec, view, parts_of(folder, view), rng, (rows, TICKS))
    home = settings.line_home("bench")
    (home / "samples").mkdir(parents=True)
    log = FileLog(home / "log" / "events", event_schema(spec), writer=True)
    each = rows // TICKS
    for tick in range(TICKS):
        samples = _samples(spec, rng, tick, each)
        path = f"samples/b={tick:08d}.parquet"
        pq.write_table(samples, home / path)
        at_us = int(samples["emitted_at"].cast(pa.int64())[0].as_py()) + 1
        events = (tick * each, (tick + 1) * each)
        manifest = TickManifest(tick, at_us, events, (0, 0), path, None, {}, {"corrections": 0})
        write_json(home / "ticks" / f"{tick:08d}.json", manifest.to_json())
        log.append(_events(spec, samples))
    log.close()


def _samples(spec: LineSpec, rng: np.random.Generator, tick: int, rows: int) -> pa.Table:
    at = pa.array(np.full(rows, (tick + 1) * (SPAN_US // TICKS))).cast(TIME)
    users, items = rng.integers(0, USERS, rows), (ITEMS * rng.random(rows) ** 3).astype(np.int64)
    label = (rng.random(rows) < 0.02 + 0.2 * (items % 7 == 0)).astype(np.int8)
    first = tick * rows
    given = {
        "impression_id": [f"i{first + row}" for row in range(rows)],
        "user_id": users,
        "item_id": items,
        "label": label,
        "positive_weight": label.astype(np.float32),
        "negative_weight": (1 - label).astype(np.float32),
        "impression_offset": np.arange(first, first + rows),
        "engagement_offset": np.full(rows, -1),
        **dict.fromkeys(("served_at", "event_at", "emitted_at"), at),
    }
    given["request_id"] = given["impression_id"]
    columns = []
    for field in sample_schema(spec):
        if field.name in given:
            columns.append(pa.array(given[field.name]).cast(field.type))
        elif pa.types.is_timestamp(field.type):
            columns.append(pa.nulls(rows, field.type))
        elif pa.types.is_string(field.type):
            columns.append(pa.array(["bootstrap"] * rows))
        else:
            columns.append(pa.array(np.zeros(rows)).cast(field.type))
    return pa.table(columns, schema=sample_schema(spec))


def _events(spec: LineSpec, samples: pa.Table) -> pa.Table:
    rows = samples.num_rows
    given = {
        "event": pa.array(["impression"] * rows),
        "arrival_at": samples["event_at"],
        "value": pa.array(np.ones(rows, np.int64)),
        **{name: samples[name] for name in ("impression_id", "request_id", "event_at")},
        **{name: samples[name] for name in spec.columns},
    }
    schema = event_schema(spec)
    return pa.table([given[name] for name in schema.names], schema=schema)


if __name__ == "__main__":
    import json

    place = Path(sys.argv[2])
    sys.stdout.write(json.dumps(tell(sys.argv[1], place, lambda: _train(place))) + "\n")
