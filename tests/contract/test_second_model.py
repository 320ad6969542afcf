"""The second model of a server: made from the first in memory, or from the store if it differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace.declaration import LineSpec
from headrace.line import LineStore
from headrace.model.delta import same_bits
from headrace.serving.swap import Follower
from tests.contract.delta_writer import Writer, fifty_rows, served, small_line


@pytest.fixture(scope="module")
def spec() -> LineSpec:
    return small_line()


@pytest.fixture(scope="module")
def asked(spec: LineSpec) -> pa.Table:
    return fifty_rows(spec)


@pytest.fixture
def writer(tmp_path: Path, spec: LineSpec) -> Writer:
    return Writer(tmp_path, spec)


@pytest.fixture
def follower(tmp_path: Path, spec: LineSpec, writer: Writer) -> Follower:
    follower = Follower(spec, LineStore(tmp_path, spec.line))
    assert follower.follow()
    return follower


def test_the_second_model_is_made_from_the_first_in_memory(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    writer.next()
    follower.follow()
    fresh = Follower(writer.spec, writer.lines)
    assert fresh.follow()
    held = fresh.current().version
    whole = {path: writer.lines.files.read(path) for path in stored(writer)}
    for path in whole:
        writer.lines.files.replace(path, b"torn")
    fresh._have_one_wait()
    assert fresh.delivery()["waiting"] == held.version
    for path, raw in whole.items():
        assert raw is not None
        writer.lines.files.replace(path, raw)
    for _ in range(2):
        newest = writer.next()
        assert fresh.follow()
        assert np.array_equal(served(fresh, asked), writer.scores(newest.version, asked))
    told = fresh.delivery()
    assert (told["bases"], told["deltas"], told["refused"]) == (1, 3, 0)


def stored(writer: Writer) -> list[str]:
    paths = writer.lines.files.tree("versions")
    return [f"versions/{path}" for path in paths if path.endswith(".zst")]


def test_a_second_model_that_differs_from_what_was_published_comes_from_the_store(
    writer: Writer, follower: Follower, asked: pa.Table, caplog: pytest.LogCaptureFixture
) -> None:
    held = follower.current()
    rows = np.array([7])
    held.model.apply({"rows/table": rows, "values/table": held.model.rows("table", rows) + 1})
    follower._have_one_wait()
    assert "v000001: the model in memory is no longer what was published" in caplog.text
    assert follower._waiting is not None
    assert same_bits(follower._waiting.state(), writer.states["v000001"])
