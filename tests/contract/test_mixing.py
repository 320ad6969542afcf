"""Older samples in an incremental training: which, how many, and that they stay out by default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace import mixing, train
from headrace.declaration import LineSpec
from headrace.errors import DeclarationError
from headrace.labels import state
from headrace.line.fingerprint import fingerprint
from headrace.mixing import mixed
from headrace.model import Model
from headrace.sample import Quarantine, head_tick, read_samples
from headrace.settings import load_line
from tests.contract.written_line import LINE, ROWS, Line, correct_five, opened

FROM, TO = 34, 40
CLOSED = 10  # ticks of a second until an impression is settled
DECLARED = LINE.replace("attribution_window: 10m", f"attribution_window: {CLOSED}s")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    root = tmp_path_factory.mktemp("mixing")
    (root / "lines").mkdir()
    (root / "lines" / "tiny.yaml").write_text(DECLARED, encoding="utf-8")
    line = opened(root)
    line.tick(5)
    correct_five(line, 2)
    line.tick(TO - 6)
    Quarantine(line.home).add(10, 14, ["test"])
    Quarantine(line.home).release(10, 14)
    return line


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "GRACE_US", 0)
    monkeypatch.setattr(mixing, "BLOCK_TICKS", 8)


def with_share(spec: LineSpec, share: float) -> LineSpec:
    return spec.model_copy(update={"model": spec.model.model_copy(update={"replay_share": share})})


def window(line: Line) -> pa.Table:
    return read_samples(line.spec, line.home, FROM, TO)


def tick_of(rows: pa.Table) -> np.ndarray:
    return np.array([int(name.split(":")[0]) for name in rows["impression_id"].to_pylist()])


def test_without_a_share_the_window_is_learned_as_it_is(line: Line) -> None:
    rows = window(line)
    assert mixed(line.spec, line.home, FROM, TO, rows) is rows


def test_the_declared_share_is_old_settled_and_was_never_quarantined(line: Line) -> None:
    spec, rows = with_share(line.spec, 0.6), window(line)
    mixture = mixed(spec, line.home, FROM, TO, rows)
    ticks = tick_of(mixture)
    assert mixture.filter(pa.array(ticks >= FROM)).equals(rows)  # in their order
    old = set(ticks[ticks < FROM].tolist())
    assert (ticks < FROM).sum() == int(len(rows) * 1.5)
    assert max(old) < FROM - CLOSED
    assert not old & {10, 11, 12, 13}
    assert len(old) > 8
    first, last = np.flatnonzero(ticks < FROM)[[0, -1]]
    assert first < 20 and last > len(mixture) - 20  # between the new ones, not beside them


def test_an_old_row_has_its_newest_label_once_and_takes_nothing_back(line: Line) -> None:
    everything = with_share(line.spec, 0.9)
    mixture = mixed(everything, line.home, FROM, TO, window(line))
    ids = mixture["impression_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert min(mixture["negative_weight"].to_pylist()) == 0
    corrected = read_samples(line.spec, line.home, 5, 6)["impression_id"].to_pylist()
    weights = mixture.filter(pa.compute.is_in(mixture["impression_id"], pa.array(corrected)))
    assert weights.num_rows > 0
    assert weights["label"].to_pylist() == [1] * weights.num_rows
    assert weights["positive_weight"].to_pylist() == [1] * weights.num_rows


def test_a_negative_that_was_not_learned_is_not_replayed(line: Line) -> None:
    label = line.spec.label.model_copy(update={"negative_rate": 0.25})
    spec = with_share(line.spec.model_copy(update={"label": label}), 0.9)
    mixture = mixed(spec, line.home, FROM, TO, window(line))
    old = mixture.filter(pa.array(tick_of(mixture) < FROM))
    negatives = old.filter(pa.compute.equal(old["label"], 0))["negative_weight"].to_pylist()
    assert negatives and set(negatives) == {4.0}


def test_the_same_window_draws_the_same_rows_and_another_one_others(line: Line) -> None:
    spec, rows = with_share(line.spec, 0.3), window(line)
    first = mixed(spec, line.home, FROM, TO, rows)
    assert mixed(spec, line.home, FROM, TO, rows).equals(first)
    assert not mixed(spec, line.home, FROM, TO - 1, rows).equals(first)
    assert list((line.home / "corrections").glob("*.npy"))


def test_a_past_without_settled_rows_gives_what_it_has(line: Line) -> None:
    spec = with_share(line.spec, 0.5)
    rows = read_samples(spec, line.home, 0, 3)
    assert mixed(spec, line.home, 0, 3, rows).equals(rows)
    assert mixed(spec, line.home, 3, 6, rows).equals(rows)


def test_a_champion_is_continued_over_the_mixture_in_the_same_bytes(line: Line) -> None:
    model = Model(line.spec.model, line.spec.seed)
    model.learn(read_samples(line.spec, line.home, 0, FROM))
    about = {"excluded": [], "watermark_us": 1, "event_at_us": 1, "rows": 1, "metrics": {}}
    base = line.store.publish(
        model.state(),
        parent=None,
        from_tick=0,
        to_tick=FROM,
        feature_service=line.spec.feature_service,
        code=train.code_of(line.spec),
        **about,
    )
    line.store.advance(None, base.version, "promote", "test")
    spec = with_share(line.spec, 0.4)
    versions = [train.incremental(line.settings, spec, FROM, TO) for _ in range(2)]
    model.learn(mixed(spec, line.home, FROM, TO, window(line)))
    expected = f"{fingerprint(model.state()):016x}"
    assert [line.store.get(version).fingerprint for version in versions] == [expected] * 2
    published = line.store.get(versions[0])
    assert published.rows == (TO - FROM) * ROWS
    assert published.metrics["replayed"] == int((TO - FROM) * ROWS * 0.4 / 0.6)
    plain = line.store.get(train.incremental(line.settings, line.spec, FROM, TO))
    assert "replayed" not in plain.metrics
    assert plain.fingerprint != expected
    assert head_tick(line.home) == TO


def test_rows_that_were_weighed_as_a_stream_are_not_replayed(tmp_path: Path) -> None:
    wrong = DECLARED.replace(
        "provisional_after: 10s", "provisional_after: 5s, delayed_feedback: fnw"
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(wrong.replace("epochs: 2", "replay_share: 0.2"), encoding="utf-8")
    with pytest.raises(DeclarationError, match="use delayed_feedback: correct or wait"):
        load_line(path)
