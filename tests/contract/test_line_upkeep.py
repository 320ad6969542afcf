"""Bases behind long chains, old versions without files, and every stored byte checked."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import upkeep
from headrace.declaration import DeliverySpec
from headrace.errors import InputError, IntegrityError
from headrace.line import LineStore, Version, compaction, retention
from headrace.line.compare import compare
from headrace.line.verify import verify
from headrace.model.delta import State, same_bits
from headrace.settings import find_line, load_settings

ABOUT: dict[str, Any] = {
    "excluded": [], "watermark_us": 0, "event_at_us": 0, "feature_service": "x_v1",
    "code": "test", "rows": 1,
}  # fmt: skip
LATER = timedelta(days=30)


def state(step: int) -> State:
    table = np.random.default_rng(0).standard_normal((300, 4), dtype=np.float32)
    table[: 2 * step] += step
    return {"table": table, "step": np.array([step])}


def grow(store: LineStore, steps: int, promote: bool = True) -> list[Version]:
    """Publish states 0 to `steps`, each a delta to the one before."""
    made: list[Version] = []
    for step in range(steps + 1):
        parent = made[-1].version if made else None
        metrics = {"loss": 1.0 / (1 + step)}
        version = store.publish(
            state(step), parent=parent, from_tick=step, to_tick=step + 1, metrics=metrics, **ABOUT
        )
        made.append(version)
        store.put_verdict(version.version, {"passed": promote, "reasons": []})
        if promote:
            store.advance(store.champion(), version.version, "promote", "")
    return made


@pytest.fixture
def store(tmp_path: Path) -> LineStore:
    return LineStore(tmp_path, "x")


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> LineStore:
    if request.param == "local":
        return LineStore(tmp_path, "x")
    return LineStore(f"{request.getfixturevalue('bucket')}/{tmp_path.name}", "x")


def outcomes(store: LineStore) -> dict[str, str]:
    return {each.version: each.outcome for each in verify(store)}


def test_a_base_is_due_by_length_or_by_size(store: LineStore) -> None:
    versions = grow(store, 4)
    by_length = DeliverySpec(compact_after=4, compact_share=100)
    assert [compaction.due(store, v, by_length) for v in versions] == [False] * 4 + [True]
    deltas = sum(v.size for v in versions[1:4])
    by_size = DeliverySpec(compact_share=(deltas - 1) / versions[0].size)
    assert [compaction.due(store, v, by_size) for v in versions] == [False] * 3 + [True] * 2


@pytest.mark.slow
def test_a_compacted_version_is_read_from_its_base_and_equals_its_deltas(
    anywhere: LineStore,
) -> None:
    versions = grow(anywhere, 5)
    assert compaction.compact(anywhere, versions[3])
    assert not compaction.compact(anywhere, versions[3])
    assert not compaction.compact(anywhere, versions[0])
    assert [link.version for link, _ in anywhere.chain(versions[5])] == [
        "v000004",
        "v000005",
        "v000006",
    ]
    for step, version in enumerate(versions):
        assert same_bits(anywhere.load(version.version)[1], state(step))
    assert set(outcomes(anywhere).values()) == {"sound"}
    anywhere.files.remove(f"versions/{versions[1].version}/state.safetensors.zst")
    assert same_bits(anywhere.load(versions[5].version)[1], state(5))  # needs no older delta
    assert not compaction.due(
        anywhere, versions[5], DeliverySpec(compact_after=3, compact_share=100)
    )


def test_a_compaction_that_died_is_invisible_and_done_again(
    store: LineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = grow(store, 2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store.files, "create", killed)
        compaction.compact(store, versions[2])
    before = store.files.tree("versions")
    assert len(store.chain(versions[2])) == 3
    assert compaction.compact(store, versions[2])
    added = set(store.files.tree("versions")) - set(before)
    assert added == {f"{versions[2].version}/base.json"}


def test_a_base_that_reads_back_wrong_is_not_used(
    store: LineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = grow(store, 2)
    whole = store.files.replace
    monkeypatch.setattr(store.files, "replace", lambda name, raw: whole(name, raw[:-1]))
    with pytest.raises(IntegrityError):
        compaction.compact(store, versions[2])
    assert len(store.chain(versions[2])) == 3
    assert same_bits(store.load(versions[2].version)[1], state(2))


def test_retention_keeps_champions_pins_and_what_they_are_built_on(store: LineStore) -> None:
    versions = [v.version for v in grow(store, 7)]
    compaction.compact(store, store.get(versions[4]))
    retention.pin(store, versions[2], "a paper cites it")
    spec = DeliverySpec(keep_versions=2)
    now = datetime.now(UTC)
    marked = retention.prune(store, spec, now)
    # 5, 6, 7 hang on the base in 4; the pinned 2 hangs on 0 and 1
    assert marked.marked == [versions[3]]
    assert marked.removed == []
    with pytest.raises(InputError, match="was pruned at"):
        store.rollback(to=versions[3])
    assert retention.prune(store, spec, now).removed == []  # within the grace
    assert retention.prune(store, spec, now + retention.GRACE).removed == [versions[3]]
    assert retention.prune(store, spec, now + LATER) == retention.Pruned()
    assert outcomes(store) == {v: "pruned" if v == versions[3] else "sound" for v in versions}
    assert store.get(versions[3]).metrics == {"loss": 0.25}
    assert store.verdict(versions[3]) == {"passed": True, "reasons": []}
    assert store.rollback().version == versions[6]
    retention.unpin(store, versions[2])
    gone = retention.prune(store, spec, now + LATER)
    assert set(gone.marked) == {versions[0], versions[1], versions[2]}


@pytest.mark.slow
def test_what_a_learner_left_is_forgotten_and_what_a_cycle_left_is_not(
    anywhere: LineStore,
) -> None:
    for step in range(8):
        parent = anywhere.newest()
        by: Any = "cycle" if step in (0, 4) else "learner"
        made = anywhere.publish(
            state(step), parent=parent, from_tick=step, to_tick=step + 1, metrics={},
            publisher=by, **ABOUT,
        )  # fmt: skip
        anywhere.put_verdict(made.version, {"passed": True, "reasons": []})
        action = "promote" if by == "cycle" else "learn"
        anywhere.advance(anywhere.champion(), made.version, action, "")
        if step in (4, 6):
            compaction.compact(anywhere, made)
    spec, known, now = DeliverySpec(keep_versions=2), retention.Known(), datetime.now(UTC)
    for later in (timedelta(), retention.GRACE, 2 * retention.GRACE):
        retention.prune(anywhere, spec, now + later, known)
    assert set(known.stripped) == {f"v{number:06d}" for number in range(1, 7)}
    assert len(anywhere.versions()) == 8
    retention.prune(anywhere, spec, now + timedelta(days=2), known)
    assert anywhere.published() == ["v000001", "v000005", "v000007", "v000008"]
    assert [c.generation for c in anywhere.history()] == [1, 5, 7, 8]
    assert LineStore(anywhere.files.root, "x").champion() == anywhere.champion()
    assert anywhere.rollback_target()[1] == "v000007"
    assert same_bits(anywhere.load("v000008")[1], state(7))
    known = retention.Known()  # another process finds the same
    assert retention.prune(anywhere, spec, now + timedelta(days=2), known) == retention.Pruned()
    assert set(known.stripped) == {"v000001", "v000005"}


def test_a_number_is_claimed_without_a_look_at_all_the_others(
    store: LineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(store, 1)
    other = LineStore(store.files.root, "x")
    grow(other, 1)
    monkeypatch.setattr(store.files, "names", lambda _folder: pytest.fail("listed"))
    assert grow(store, 0, promote=False)[0].version == "v000005"


def test_a_marked_version_that_is_needed_again_is_taken_back(anywhere: LineStore) -> None:
    versions = [v.version for v in grow(anywhere, 3)]
    compaction.compact(anywhere, anywhere.get(versions[2]))
    now = datetime.now(UTC)
    assert retention.prune(anywhere, DeliverySpec(keep_versions=2), now).marked == versions[:2]
    wider = retention.prune(anywhere, DeliverySpec(keep_versions=3), now + LATER)
    assert wider.restored == versions[:2]
    assert wider.removed == []
    assert anywhere.rollback(to=versions[1]).version == versions[1]


def test_rejected_versions_lose_their_files_by_age_and_keep_their_verdict(
    store: LineStore,
) -> None:
    champions = grow(store, 1)
    refused = store.publish(
        state(9), parent=champions[1].version, from_tick=2, to_tick=3, metrics={}, **ABOUT
    )
    store.put_verdict(refused.version, {"passed": False, "reasons": ["calibration_within"]})
    store.files.create("versions/v000007/claim.json", b"{}")
    spec = DeliverySpec(keep_rejected="1h")
    now = datetime.now(UTC)
    assert retention.prune(store, spec, now) == retention.Pruned()
    later = now + timedelta(hours=2)
    assert retention.prune(store, spec, later).marked == [refused.version]
    assert retention.prune(store, spec, later + retention.GRACE).removed == [refused.version]
    verdict = store.verdict(refused.version)
    assert verdict is not None
    assert verdict["reasons"] == ["calibration_within"]


def test_a_version_between_its_verdict_and_its_promotion_is_not_marked(store: LineStore) -> None:
    champion = grow(store, 1)[-1]
    soon = store.publish(
        state(3), parent=champion.version, from_tick=2, to_tick=3, metrics={}, **ABOUT
    )
    store.put_verdict(soon.version, {"passed": True, "reasons": []})
    now = datetime.now(UTC) + LATER
    assert retention.prune(store, DeliverySpec(), now) == retention.Pruned()
    store.advance(store.champion(), soon.version, "promote", "")
    store.require_files(soon.version)


def test_what_a_dead_publisher_left_is_removed_by_age(store: LineStore) -> None:
    grow(store, 1)
    claimed = store._claim()
    store.files.replace(f"versions/{claimed}/state.safetensors.zst", b"torn")
    spec = DeliverySpec(keep_rejected="1h")
    assert retention.prune(store, spec).removed == []
    assert retention.prune(store, spec, datetime.now(UTC) + LATER).removed == [claimed]


def test_verify_names_each_damaged_version_and_goes_on(store: LineStore) -> None:
    versions = [v.version for v in grow(store, 4)]
    compaction.compact(store, store.get(versions[2]))
    name = f"versions/{versions[1]}/state.safetensors.zst"
    raw = store.files.read(name)
    assert raw is not None
    store.files.replace(name, raw[:-1])
    found = {each.version: each for each in verify(store)}
    assert [found[v].outcome for v in versions] == [
        "sound", "damaged", "damaged", "sound", "sound"
    ]  # fmt: skip
    assert "SHA-256" in found[versions[1]].reason


def test_the_difference_of_two_versions_is_told_in_rows(store: LineStore) -> None:
    a, b, c = (v.version for v in grow(store, 2))
    told = compare(store, a, c)
    assert told["arrays"] == {"step": {"rows": 1, "of": 1}, "table": {"rows": 4, "of": 300}}
    assert told["metrics"] == {"loss": [1.0, pytest.approx(1 / 3)]}
    assert told["fields"]["from_tick"] == [0, 2]
    assert not told["same_state"]
    assert compare(store, b, b)["same_state"]


def test_a_pass_of_the_upkeep_compacts_the_champion_and_then_rests(tmp_path: Path) -> None:
    settings = load_settings({"HEADRACE_HOME": str(tmp_path)})
    spec = find_line(load_settings({}), "coupons")
    spec = spec.model_copy(update={"delivery": DeliverySpec(compact_after=3)})
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    assert upkeep.once(settings, spec) == upkeep.Done(None, [], [], [])
    newest = grow(store, 4)[-1]
    assert upkeep.once(settings, spec).compacted == newest.version
    assert len(store.chain(newest)) == 1
    assert upkeep.once(settings, spec).compacted is None
    stop = threading.Event()
    worker = threading.Thread(target=upkeep.run, args=(settings, spec, stop, 0.01))
    worker.start()
    for step in (5, 6, 7):
        store.publish(
            state(step), parent=f"v00000{step}", from_tick=step, to_tick=step + 1, metrics={},
            **ABOUT,
        )  # fmt: skip
    store.advance(store.champion(), "v000008", "promote", "")
    deadline = time.monotonic() + 30
    while len(store.chain(store.get("v000008"))) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop.set()
    worker.join()
    told = json.loads(upkeep.beat(settings, spec.line).read_text())
    assert told["problem"] is None
    assert datetime.fromisoformat(told["at"]) <= datetime.now(UTC)
    assert same_bits(store.load("v000008")[1], state(7))
