"""A line that an earlier release served is declared by this one, loads, and scores the same.

`tests/golden/models/<release>` holds its YAML, a base and a delta with random weights, rows and
their scores. Written as the homes are (see test_homes.py), and never again.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.declaration import LineSpec
from headrace.events import input_fields
from headrace.line import LineStore
from headrace.model import Model
from headrace.settings import load_line
from tests.golden.test_homes import release

MODELS = Path(__file__).parent / "models"
ROWS = 8
LINE = """
line: golden
columns: {user_id: string, item: int, price: float}
source: {kind: live}
label:
  engagement: click
  attribution_window: 5m
  conversion: {engagement: buy, attribution_window: 20m, provisional_after: 3m}
windows:
  - {name: shows, key: [item], event: impression, aggregate: count, window: 10m}
  - {name: clicks, key: [item], event: click, aggregate: count, window: 10m}
request_features:
  - {name: thing, kind: hash, of: item}
  - {name: pair, kind: cross, of: [user_id, item]}
  - {name: ctr, kind: ratio, of: [clicks, shows], prior: [1, 9]}
  - {name: price_log, kind: log1p, of: price}
model: {categorical: [thing, pair], numeric: [ctr, price_log], table_bits: 8, embedding_dim: 4,
  hidden: [8, 4]}
"""


def rows(spec: LineSpec, values: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(values, schema=pa.schema(input_fields(spec)))


def scores(spec: LineSpec, state: dict[str, Any], inputs: pa.Table) -> dict[str, list[float]]:
    model = Model(spec.model, spec.seed, conversion=spec.converts)
    model.load_state(state)
    return {task: found.tolist() for task, found in model.predict_tasks(inputs).items()}


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "line.yaml").write_text(LINE, encoding="utf-8")
    spec, rng = load_line(folder / "line.yaml"), np.random.default_rng(17)
    fields = pa.schema(input_fields(spec))
    drawn: list[dict[str, Any]] = [
        {
            field.name: int(rng.integers(2**40)) if pa.types.is_integer(field.type)
            else float(rng.normal())
            for field in fields
        }
        for _ in range(ROWS)
    ]  # fmt: skip
    store, parent = LineStore(str(folder), "golden"), None
    state = Model(spec.model, spec.seed, conversion=spec.converts).state()
    told: dict[str, Any] = {"rows": drawn, "scores": {}}
    for number in range(2):
        for name in ("table", "dense"):
            kept = rng.random(len(state[name])) < number / 2  # of a delta half of the rows
            change = rng.normal(size=state[name].shape, scale=0.3).astype(np.float32)
            change = np.abs(change) if name == "table" else change  # of which n is a sum of squares
            change[kept] = 0
            state[name] = state[name] + change
        version = store.publish(
            state, parent=parent, from_tick=number, to_tick=number + 1, excluded=[],
            watermark_us=1 + number, event_at_us=1, feature_service=spec.feature_service,
            code="golden", rows=ROWS, metrics={},
        )  # fmt: skip
        parent = version.version
        store.advance(store.champion(), parent, "promote", "golden")
        told["scores"][parent] = scores(spec, state, rows(spec, drawn))
    (folder / "scores.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for lock in folder.rglob(".lock"):
        lock.unlink()


def test_the_release_at_hand_has_its_model() -> None:
    place = MODELS / release()
    if os.environ.get("HEADRACE_GOLDEN") and not place.exists():
        write(place)
    assert (place / "scores.json").is_file()


@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.glob("*")))
def test_a_stored_line_is_declared_loads_and_scores_as_it_did(name: str, tmp_path: Path) -> None:
    shutil.copytree(MODELS / name, tmp_path / "golden")
    told = json.loads((tmp_path / "golden" / "scores.json").read_text(encoding="utf-8"))
    spec = load_line(tmp_path / "golden" / "line.yaml")
    store = LineStore(str(tmp_path / "golden"), "golden")
    assert [one.version for one in store.history()] == list(told["scores"])
    inputs = rows(spec, told["rows"])
    for version, wanted in told["scores"].items():
        meta, state = store.load(version)
        assert meta.feature_service == spec.feature_service
        found = scores(spec, state, inputs)
        assert found.keys() == wanted.keys()
        for task, each in wanted.items():  # another processor may round sums otherwise
            assert np.allclose(found[task], each, rtol=1e-5, atol=1e-7), (version, task)
            assert len(set(each)) == ROWS
    base, delta = (store.get(version) for version in told["scores"])
    assert (base.parent, delta.parent) == (None, base.version)
