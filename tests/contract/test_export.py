"""An exported version scores as the server does, in a process that has no Headrace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headrace import cli
from headrace.atomic import write_json
from headrace.declaration import LineSpec
from headrace.errors import DeclarationError, InputError, IntegrityError
from headrace.events import TIME, sample_schema
from headrace.export import hashes, proof, signature, zones
from headrace.export.features import Features, first_reaching
from headrace.export.graph import Scorer
from headrace.export.probe import rows as probe_rows
from headrace.export.weights import quantized, weights
from headrace.line import LineStore
from headrace.model import Model
from headrace.model.inputs import field_salt, mix, mixed_keys
from headrace.model.runtime import tf
from headrace.requests import cross64, hash64, log1p, transform
from headrace.sample import TickManifest
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.train import code_of

# Every kind of request feature, on columns, windows and other features.
MART: dict[str, Any] = {
    "line": "mart",
    "seed": 3,
    "timezone": "America/New_York",
    "columns": {"user": "string", "place": "string", "item": "int", "price": "float"},
    "source": {"kind": "live"},
    "label": {"engagement": "click", "attribution_window": "1h", "provisional_after": "1s"},
    "windows": [
        {"name": name, "key": ["user"], "event": "click", "window": "1h", **more}
        for name, more in (
            ("clicks", {"aggregate": "count"}),
            ("views", {"aggregate": "count", "event": "impression"}),
            ("spent", {"aggregate": "sum", "column": "item"}),
            ("most", {"aggregate": "max", "column": "item"}),
            ("last_place", {"aggregate": "last", "column": "place"}),
            ("last_item", {"aggregate": "last", "column": "item"}),
            ("clicked_at", {"aggregate": "last_at"}),
        )
    ],
    "request_features": [
        {"name": "hour", "kind": "hour_of_day"},
        {"name": "weekday", "kind": "day_of_week"},
        {"name": "user_id", "kind": "hash", "of": "user"},
        {"name": "item_id", "kind": "hash", "of": "item"},
        {"name": "place_id", "kind": "hash", "of": "last_place"},
        {"name": "last_id", "kind": "hash", "of": "last_item"},
        {"name": "clicks_id", "kind": "hash", "of": "clicks"},
        {"name": "user_item", "kind": "cross", "of": ["user", "item"]},
        {"name": "place_hour", "kind": "cross", "of": ["place", "hour", "last_place"]},
        {"name": "ctr", "kind": "ratio", "of": ["clicks", "views"], "prior": [0.1, 0.2]},
        {"name": "ctr_bucket", "kind": "bucketize", "of": "ctr", "boundaries": [0.2, 0.5, 2]},
        {"name": "bucket_id", "kind": "hash", "of": "ctr_bucket"},
        {"name": "age", "kind": "since", "of": "clicked_at"},
        {"name": "mean_item", "kind": "mean", "of": ["spent", "clicks"], "prior": [0.3, 0]},
        {"name": "price_log", "kind": "log1p", "of": "price"},
        {"name": "price_again", "kind": "number", "of": "price_log"},
        {"name": "price_bucket", "kind": "bucketize", "of": "price_again", "boundaries": [-1, 1.5]},
        {"name": "most_number", "kind": "number", "of": "most"},
        {"name": "hour_number", "kind": "number", "of": "hour"},
        {"name": "unread", "kind": "hash", "of": "place"},
    ],
}
IDS = [
    *("hour", "weekday", "user_id", "item_id", "place_id", "last_id", "clicks_id"),
    *("user_item", "place_hour", "ctr_bucket", "bucket_id", "price_bucket"),
]
NUMBERS = ["ctr", "age", "mean_item", "price_log", "most_number", "hour_number"]
KINDS: dict[str, dict[str, Any]] = {
    "ftrl": {"family": "ftrl"},
    "dcn": {"family": "dcn", "cross_rank": 3, "precision": "bfloat16"},
    "wide": {"family": "ftrl_deep", "wide": ["user_item"]},
    "dynamic": {"family": "ftrl_deep", "ids": "dynamic", "admit_after": 2, "wide": ["place_hour"]},
    "buys": {"family": "ftrl_deep", "wide": ["user_item"]},
    "numbers only": {"family": "ftrl_deep", "categorical": []},
}
BUYS = {"engagement": "buy", "attribution_window": "1d"}
LAST_BITS = 4e-16  # of a probability: exp is TensorFlow's
US = 1_000_000


def mart(kind: str, features: dict[str, Any] | None = None) -> LineSpec:
    model = {"categorical": IDS, "numeric": NUMBERS, "table_bits": 10, "embedding_dim": 4}
    label = MART["label"] | ({"conversion": BUYS} if kind.startswith("buys") else {})
    more = {"label": label, "model": model | KINDS[kind] | (features or {})}
    return LineSpec.model_validate(MART | more)


@cache
def learned(kind: str) -> tuple[LineSpec, Model, Scorer]:
    spec = mart(kind)
    model = learn(spec)
    arrays = weights(spec.model, model.state(), conversion=spec.converts)
    return spec, model, Scorer(spec, arrays)


def learn(spec: LineSpec, rows: int = 500) -> Model:
    """A model of rows whose label follows a few of their features."""
    model = Model(spec.model, spec.seed, conversion=spec.converts)
    inputs = transform(spec, probe_rows(spec, rows, seed=11))
    clicked = (np.arange(rows) % 3 == 0).astype(np.float32)
    bought = (np.arange(rows) % 6 == 0).astype(np.float32)
    for task, label in (("", clicked), ("conversion_", bought)):
        for side, weight in (("positive", label), ("negative", 1 - label)):
            inputs = inputs.append_column(f"{task}{side}_weight", pa.array(weight))
    model.learn(inputs)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_scores_as_the_server(kind: str) -> None:
    spec, model, graph = learned(kind)
    unseen = probe_rows(spec, 600, seed=12)
    assert proof.check(graph.serve, model, spec, unseen) <= LAST_BITS
    fed = {name: tf.constant(values) for name, values in signature.feed(spec, unseen).items()}
    answer = graph.serve(**fed)
    assert {name: each.dtype.name for name, each in answer.items()} == signature.outputs(spec)
    for rows in (0, 1, 256, 257):
        few = unseen.slice(0, rows)
        assert proof.scores(graph.serve, spec, few) == pytest.approx(
            proof.server_scores(model, spec, few), abs=LAST_BITS
        )


def test_a_wrong_weight_is_found_out() -> None:
    spec, model, _ = learned("numbers only")
    arrays = weights(spec.model, model.state())
    arrays["offset"] = arrays["offset"] + np.float32(1e-4)
    with pytest.raises(IntegrityError, match="a row scores"):
        proof.check(Scorer(spec, arrays).serve, model, spec, probe_rows(spec, 50, seed=1))


@pytest.fixture(scope="module")
def hash_texts() -> Any:
    return tf.function(
        hashes.hash_texts, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=8))
def test_texts_hash_alike(hash_texts: Any, texts: list[str]) -> None:
    texts = [*texts, "x" * 3 * len(texts)]
    assert hash_texts(tf.constant(texts)).numpy().tolist() == hash64(pa.array(texts)).tolist()


def test_whole_numbers_and_crosses_hash_alike() -> None:
    draw = np.random.default_rng(5)
    one, other = draw.integers(-(2**63), 2**63 - 1, (2, 500))
    one[:4] = [0, -1, -(2**63), 2**63 - 1]
    assert np.array_equal(hashes.hash_ints(tf.constant(one)), hash64(pa.array(one)))
    assert np.array_equal(
        hashes.cross([tf.constant(one), tf.constant(other)]), cross64([one, other])
    )
    salts = np.array([field_salt(3, "a"), field_salt(3, "b")], np.uint64)
    keys = hashes.keys(tf.stack([one, other], 1), tf.constant(salts))
    assert np.array_equal(keys, mixed_keys([one, other], salts).T)
    assert np.array_equal(hashes.rows(keys, 12), mix([one, other], salts, 12))


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu", "Africa/Casablanca"])
def test_local_hours_are_those_of_the_server_to_the_microsecond(zone: str) -> None:
    model = {"categorical": ["hour", "weekday"]}
    spec = LineSpec.model_validate(MART | {"timezone": zone, "model": model})
    moments, offsets = zones.changes(zone)
    assert len(offsets) == len(moments) + 1
    at = np.concatenate([moments, moments - 1, np.arange(-2e15, 4e15, 1.23456789e13).astype(int)])
    table = probe_rows(spec, len(at), seed=1).drop_columns("request_at")
    table = table.append_column("request_at", pa.array(at))
    features = Features(spec)
    fed = {name: tf.constant(values) for name, values in signature.feed(spec, table).items()}
    ids, _ = features.inputs(fed, tf.constant(features.constants))
    server = transform(spec, table)
    for name in ("hour", "weekday"):
        assert np.array_equal(ids[name], server[name].to_numpy())


def test_edges_of_a_bucket_over_a_log_are_exact() -> None:
    for edge in (0.1, 1.5, float(log1p(np.array([10.0]))[0]), 700.0):
        first = first_reaching(edge, logs=1)
        assert log1p(np.array([first]))[0] >= edge > log1p(np.array([np.nextafter(first, 0)]))[0]
    assert first_reaching(0.0, logs=1) == -np.inf
    assert first_reaching(800.0, logs=1) == np.inf
    twice = first_reaching(1.5, logs=2)
    assert log1p(log1p(np.array([twice])))[0] >= 1.5


def test_a_bucket_that_rounding_could_move_is_refused_by_name() -> None:
    more = [
        {"name": "odd", "kind": "ratio", "of": ["price_log", "views"], "prior": [1, 1]},
        {"name": "odd_bucket", "kind": "bucketize", "of": "odd", "boundaries": [0.5]},
    ]
    features = MART["request_features"] + more
    line = MART | {"request_features": features}
    Features(LineSpec.model_validate(line | {"model": {"categorical": ["user_id"]}}))
    spec = LineSpec.model_validate(line | {"model": {"categorical": ["odd_bucket"]}})
    with pytest.raises(DeclarationError, match=r"odd_bucket: 'odd' is computed from a log1p"):
        Features(spec)


def test_an_infinite_number_is_refused_by_name() -> None:
    spec, _, graph = learned("ftrl")
    table = probe_rows(spec, 3, seed=1).drop_columns("price")
    table = table.append_column("price", pa.array([1.0, np.inf, 2.0]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="price_log is infinite"):
        proof.scores(graph.serve, spec, table)


@pytest.mark.slow
def test_smaller_tables_stay_close_and_say_when_they_cannot() -> None:
    features = {"categorical": ["user_id", "item_id"], "numeric": []}
    spec = mart("dynamic", features | {"wide": ["item_id"]})
    model = learn(spec)
    arrays = weights(spec.model, model.state())
    table = probe_rows(spec, 300, seed=4)
    exact = proof.server_scores(model, spec, table)
    for kind, most in (("float16", 1e-3), ("int8", 1e-2)):
        small = quantized(arrays, kind)
        apart = np.abs(proof.scores(Scorer(spec, small).serve, spec, table) - exact)
        assert 0 < apart.max() < most
        per_row = {"float16": 2 + 2 * 4, "int8": 2 + 4 + 4}[kind]
        names = ("by_id", "embedding", "scale")
        held = sum(small[name].nbytes for name in names if name in small)
        assert held == per_row * len(arrays["embedding"])
    with pytest.raises(InputError, match="int8: family ftrl has one weight an id"):
        quantized({"by_id": arrays["by_id"]}, "int8")
    with pytest.raises(InputError, match="'by_id' is 1e\\+06, beyond float16"):
        quantized({"by_id": np.array([1e6], np.float32)}, "float16")


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
