"""An exported graph scores as the server does: each of its parts, and all kinds of models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headrace.declaration import LineSpec
from headrace.errors import DeclarationError, InputError, IntegrityError
from headrace.export import hashes, proof, signature, zones
from headrace.export.features import Features, first_reaching
from headrace.export.graph import Scorer
from headrace.export.probe import rows as probe_rows
from headrace.export.weights import quantized, weights
from headrace.model.inputs import field_salt, mix, mixed_keys
from headrace.model.runtime import tf
from headrace.requests import cross64, hash64, log1p, transform
from tests.contract.mart_line import KINDS, LAST_BITS, MART, learn, learned, mart


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
