"""`headrace export`: what it writes scores alike in a process that has no Headrace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace import cli
from headrace.atomic import write_json
from headrace.declaration import LineSpec
from headrace.events import TIME, sample_schema
from headrace.export import proof, signature
from headrace.export.probe import rows as probe_rows
from headrace.line import LineStore
from headrace.model import Model
from headrace.requests import transform
from headrace.sample import TickManifest
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.train import code_of
from tests.contract.mart_line import LAST_BITS, learn


@dataclass
class Shop:
    """A home whose `coupons` line has a champion that was never trained by a pipeline."""

    settings: Settings
    spec: LineSpec
    model: Model

    @property
    def store(self) -> LineStore:
        return LineStore(self.settings.line_store_url(self.spec.line), self.spec.line)

    def add_samples(self, rows: int) -> None:
        raw = probe_rows(self.spec, rows, seed=8)
        table = raw.append_column("served_at", raw["request_at"].cast(TIME))
        for name, column in zip(
            (inputs := transform(self.spec, raw)).column_names, inputs.columns, strict=True
        ):
            table = table.append_column(name, column)
        label = np.arange(rows) % 4 == 0
        given = {
            "impression_id": [f"i{row}" for row in range(rows)],
            "label": label.astype(np.int8),
            "impression_offset": np.arange(rows),
        }
        columns = []
        for field in (schema := sample_schema(self.spec)):
            if field.name in table.column_names:
                columns.append(table[field.name].cast(field.type))
            elif field.name in given:
                columns.append(pa.array(given[field.name], field.type))
            elif field.type in (pa.string(), TIME):
                columns.append(
                    pa.array(["x" if field.type == pa.string() else 0] * rows, field.type)
                )
            else:
                columns.append(pa.array(np.zeros(rows), field.type))
        home = self.settings.line_home(self.spec.line)
        (home / "samples").mkdir(parents=True)
        pq.write_table(pa.table(columns, schema=schema), home / "samples" / "0.parquet")
        manifest = TickManifest(0, 1, (0, rows), (0, rows), "samples/0.parquet", None, {}, {})
        write_json(home / "ticks" / "00000000.json", manifest.to_json())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    settings = load_settings({"HEADRACE_HOME": str(tmp_path_factory.mktemp("shop"))})
    spec = find_line(settings, "coupons")
    model = learn(spec)
    found = Shop(settings, spec, model)
    version = found.store.publish(
        model.state(),
        parent=None,
        from_tick=0,
        to_tick=1,
        excluded=[],
        watermark_us=1_700_000_000_000_000,
        event_at_us=1,
        feature_service=spec.feature_service,
        code=code_of(spec),
        rows=700,
        metrics={},
    )
    found.store.advance(None, version.version, "promote", "a test")
    return found


BLOCKED = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("headrace", "pandas", "pyarrow"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""
ASK = """
import numpy as np
given = np.load("given.npz", allow_pickle=True)
fed = {name: tf.constant(values.tolist(), values.dtype if values.dtype != object else None)
       for name, values in given.items()}
np.save("answers.npy", score(**fed)["probability"].numpy())
np.save("example.npy", answer["probability"].numpy())
"""


@pytest.fixture
def verb(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Runs `headrace export` in this process: exit code, stdout, stderr."""

    def run(*options: str) -> tuple[Any, str, str]:
        monkeypatch.setenv("HEADRACE_HOME", str(shop.settings.home))
        monkeypatch.setattr(sys, "argv", ["headrace", "export", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code, *capsys.readouterr())

    return run


@pytest.mark.slow
def test_the_documented_example_scores_alike_without_headrace(
    shop: Shop, tmp_path: Path, verb: Callable[..., tuple[Any, str, str]]
) -> None:
    to = tmp_path / "models" / "coupons" / "1"
    _, told, _ = verb("--to", str(to), "--json")
    exported = json.loads(told)
    assert exported["figures"] is None  # no samples yet
    assert exported["largest_difference"] <= LAST_BITS
    size = exported["bytes"]
    assert size["state"] == pytest.approx(2 * size["float32"], rel=0.01)
    assert size["disk"] == pytest.approx(size["float32"], rel=0.1)
    table = probe_rows(shop.spec, 300, seed=21)
    np.savez(tmp_path / "given.npz", **signature.feed(shop.spec, table))
    document = (PROJECT / "docs" / "export.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCKED + example + ASK],
        cwd=tmp_path,
        env=environment | {"TF_ENABLE_ONEDNN_OPTS": "0"},
        check=True,
        capture_output=True,
    )
    expected = proof.server_scores(shop.model, shop.spec, table)
    assert np.load(tmp_path / "answers.npy") == pytest.approx(expected[:, 0], abs=LAST_BITS)
    shown = [
        {"user_id": "u12", "item_id": "c3", "category": "food", "discount": 0.2, "position": 0},
        {"user_id": "u12", "item_id": "c7"},
    ]
    windows = [(40, 3), (6, 0), (350, 3), (41, 0), (12, 12), (1, 1), (5, 0), (1, 0)]
    columns = {name: [row.get(name) for row in shown] for name in shop.spec.columns}
    columns |= {w.name: list(v) for w, v in zip(shop.spec.windows, windows, strict=True)}
    raw = pa.table(columns | {"request_at": [1_767_225_600_000_000] * 2})
    documented = proof.server_scores(shop.model, shop.spec, raw)
    assert np.load(tmp_path / "example.npy") == pytest.approx(documented[:, 0], abs=LAST_BITS)
    about = json.loads((to / "assets.extra" / "headrace.json").read_text())
    assert (about["line"], about["version"]) == ("coupons", exported["version"])
    assert (about["watermark"], about["code"]) == (
        "2023-11-14T22:13:20.000+00:00",
        code_of(shop.spec),
    )
    assert about["inputs"]["user_id"] == {
        "dtype": "string",
        "shape": [None],
        "missing": "\x1amissing",
    }
    assert about["inputs"].keys() == signature.specs(shop.spec).keys()


@pytest.mark.slow
def test_the_verb_prints_what_a_smaller_table_costs(
    shop: Shop, tmp_path: Path, verb: Callable[..., tuple[Any, str, str]]
) -> None:
    shop.add_samples(400)
    to = tmp_path / "1"
    code, told, _ = verb("--to", str(to), "--quantize", "int8")
    assert code in (0, None)
    assert "scores as the server's model on 912 rows" in told
    assert "log loss and AUC on the newest 400 samples" in told
    cells = {
        name: [float(cell) for cell in re.findall(r"\d+\.\d+", row)]
        for name, row in re.findall(r"(trainer's state|float32|int8) +│(.*)", told)
    }
    (state,), (whole, loss, auc), (small, small_loss, small_auc) = cells.values()
    assert state > 1.9 * whole > 4.5 * small
    assert small_loss == pytest.approx(loss, abs=0.01)
    assert small_auc == pytest.approx(auc, abs=0.05)
    assert sum(file.stat().st_size for file in to.rglob("*")) < 1.1e6 * small
    code, _, said = verb("--to", str(to))
    assert code == 3
    assert "exists; name a new folder" in said
    code, _, said = verb("--to", str(tmp_path / "2"), "--version", "v000009")
    assert code == 3
    assert "v000009" in said
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
