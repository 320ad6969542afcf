"""Versions add up, damage is found, one writer wins, and rollback never rewrites history."""

from __future__ import annotations

import json
import multiprocessing
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import fsspec
import numpy as np
import pytest

from headrace.errors import ConflictError, InputError, IntegrityError
from headrace.line import LineStore, Version, compaction
from headrace.line import store as line_store
from headrace.line.fingerprint import fingerprint
from headrace.model.delta import State, diff, same_bits


def state(step: int = 0) -> State:
    table = np.zeros((500, 4), np.float32)
    for each in range(1, step + 1):
        table[each * 7 % 500] += each
    return {"table": table, "step": np.array([step], np.int64), "none": np.zeros((3, 0))}


def publish(
    store: LineStore, step: int = 0, parent: str | None = None, held: State | None = None
) -> Version:
    return store.publish(
        state(step),
        parent=parent,
        parent_state=held,
        from_tick=step,
        to_tick=step + 1,
        excluded=[[1, 2]],
        watermark_us=10 * step,
        event_at_us=9 * step,
        feature_service="x_v1",
        code="0.1.0",
        rows=step,
        metrics={"loss": 0.1},
    )


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a line's store is: a folder, or a prefix of its own in a bucket of moto's server."""
    if request.param == "local":
        return str(tmp_path / "home")
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


@pytest.fixture
def store(root: str) -> LineStore:
    return LineStore(root, "x")


def overwrite(root: str, name: str, raw: bytes) -> None:
    with fsspec.open(f"{root}/{name}", "wb") as file:
        file.write(raw)


def content(root: str, name: str) -> bytes:
    with fsspec.open(f"{root}/{name}", "rb") as file:
        raw: bytes = file.read()
    return raw


def test_a_base_and_its_deltas_load_as_published(root: str, store: LineStore) -> None:
    first = publish(store, 3)
    second = publish(store, 5, first.version)
    third = publish(store, 9, second.version)
    assert [v.kind for v in (first, second, third)] == ["base", "delta", "delta"]
    assert [v.version for v in (first, second, third)] == ["v000001", "v000002", "v000003"]
    other = LineStore(root, "x")
    for version, step in ((first, 3), (second, 5), (third, 9)):
        manifest, loaded = other.load(version.version)
        assert manifest == version
        assert same_bits(loaded, state(step))
    assert other.versions() == [first, second, third]


def test_a_chain_that_nobody_compacts_is_ended_by_a_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LineStore(tmp_path, "x")
    monkeypatch.setattr(line_store, "LONGEST_CHAIN", 6)
    monkeypatch.setattr(line_store, "RECOUNT", 3)
    versions = [publish(store)]
    for step in range(1, 9):
        versions.append(publish(store, step, versions[-1].version, state(step - 1)))
    bases = [index for index, version in enumerate(versions) if version.kind == "base"]
    assert bases == [0, 7]
    assert versions[7].parent == versions[6].version
    assert [v.chain_deltas for v in versions[-3:]] == [6, 0, 1]
    assert same_bits(store.load(versions[8].version)[1], state(8))
    assert same_bits(store.load(versions[6].version)[1], state(6))


def test_a_chain_grows_from_the_base_that_was_written_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LineStore(tmp_path, "x")
    monkeypatch.setattr(line_store, "LONGEST_CHAIN", 6)
    monkeypatch.setattr(line_store, "RECOUNT", 3)
    versions = [publish(store)]
    for step in range(1, 12):
        if step == 5:
            compaction.compact(store, versions[3])
        versions.append(publish(store, step, versions[-1].version, state(step - 1)))
    assert [v.chain_deltas for v in versions] == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 0, 1]


def test_deltas_beyond_the_longest_chain_still_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LineStore(tmp_path, "x")
    monkeypatch.setattr(line_store, "LONGEST_CHAIN", 3)
    newest = publish(store)
    for step in range(1, 7):
        changes = diff(state(step - 1), state(step))
        about: dict[str, Any] = {
            name: getattr(newest, name)
            for name in ("from_tick", "to_tick", "excluded", "watermark_us", "event_at_us",
                         "feature_service", "code", "rows", "metrics")
        }  # fmt: skip
        newest = store.publish_delta(
            changes, parent=newest, fingerprint=fingerprint(state(step)), **about
        )
    assert same_bits(store.load(newest.version)[1], state(6))


def test_a_delta_is_small(store: LineStore, root: str) -> None:
    draw = np.random.default_rng(0)
    parent = {"table": draw.random((4000, 16), np.float32)}
    child = {"table": parent["table"].copy()}
    child["table"][:10] += 1
    fields: dict[str, Any] = dict.fromkeys(("watermark_us", "event_at_us", "from_tick"), 0)
    fields |= {"to_tick": 1, "excluded": [], "feature_service": "", "code": "", "rows": 1}
    base = store.publish(parent, parent=None, metrics={}, **fields)
    delta = store.publish(child, parent=base.version, metrics={}, **fields)
    for version in (base, delta):
        (name,) = version.files
        assert version.size == len(content(root, f"versions/{version.version}/{name}"))
    assert delta.size < 2000 < 100_000 < base.size
    assert (delta.chain_deltas, delta.chain_bytes) == (1, delta.size)


def test_an_unknown_version_is_named(store: LineStore) -> None:
    publish(store)
    with pytest.raises(InputError, match=r"v000009.*did you mean v000001"):
        store.load("v000009")
    with pytest.raises(InputError, match="v000009"):
        store.advance(None, "v000009", "promote", "")


@pytest.mark.parametrize("damage", ["flip", "tear", "remove"])
@pytest.mark.parametrize("which", ["state.safetensors.zst", "manifest.json"])
def test_damage_anywhere_in_the_chain_is_found(
    store: LineStore, root: str, which: str, damage: str
) -> None:
    base = publish(store, 3)
    child = publish(store, 5, base.version)
    target = f"versions/{base.version}/{which}"
    raw = bytearray(content(root, target))
    raw[len(raw) // 2] ^= 1
    if damage == "remove":
        fs, path = fsspec.core.url_to_fs(f"{root}/{target}")
        fs.rm_file(path)
    else:
        overwrite(root, target, bytes(raw if damage == "flip" else raw[: len(raw) // 2]))
    with pytest.raises(IntegrityError):
        store.load(child.version)


def test_a_manifest_moved_to_another_number_is_refused(store: LineStore, root: str) -> None:
    publish(store, 1)
    publish(store, 2)
    foreign = content(root, "versions/v000001/manifest.json")
    overwrite(root, "versions/v000002/manifest.json", foreign)
    with pytest.raises(IntegrityError, match="not of x/v000002"):
        store.get("v000002")


def test_a_publisher_that_died_leaves_a_gap_and_nothing_else(store: LineStore, root: str) -> None:
    publish(store, 1)
    if "://" not in root:
        (Path(root) / "versions" / "v000002").mkdir()
    overwrite(root, "versions/v000002/claim.json", b"{}")
    overwrite(root, "versions/v000002/state.safetensors.zst", b"torn")
    assert publish(store, 2).version == "v000003"
    assert [v.version for v in store.versions()] == ["v000001", "v000003"]


def test_publishers_at_once_get_numbers_of_their_own(root: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda step: publish(LineStore(root, "x"), step), range(8)))
    assert sorted(v.version for v in made) == [f"v{n:06d}" for n in range(1, 9)]
    for version in made:
        assert same_bits(LineStore(root, "x").load(version.version)[1], state(version.rows))


def test_the_champion_advances_by_compare_and_swap(root: str) -> None:
    store, other = LineStore(root, "x"), LineStore(root, "x")
    one, two = publish(store, 1).version, publish(store, 2).version
    assert store.champion() is None
    assert store.history() == []
    first = store.advance(None, one, "promote", "better")
    assert (first.generation, first.version, first.previous) == (1, one, None)
    assert other.champion() == first
    second = other.advance(first, two, "promote", "better still")
    assert (second.generation, second.previous) == (2, one)
    assert store.champion() == second
    with pytest.raises(ConflictError, match=rf"{two}.*did \(promote: better still\)"):
        store.advance(first, one, "promote", "too late")
    with pytest.raises(ConflictError, match="did"):
        store.advance(None, one, "promote", "too late")
    assert store.history() == [first, second] == LineStore(root, "x").history()


def test_an_expected_champion_of_another_store_is_refused(root: str) -> None:
    store, foreign = LineStore(f"{root}/a", "x"), LineStore(f"{root}/b", "x")
    for each in (store, foreign):
        publish(each, 1)
        publish(each, 2)
        each.advance(None, "v000001", "promote", "")
    other = foreign.advance(foreign.champion(), "v000002", "promote", "")
    with pytest.raises(ConflictError, match="no generation 2"):
        store.advance(other, "v000001", "promote", "")
    store.advance(store.champion(), "v000001", "promote", "")
    with pytest.raises(ConflictError, match="is not 'v000002'"):
        store.advance(other, "v000001", "promote", "")


def try_to_advance(store: LineStore, version: str, start: Any) -> bool:
    expected = store.champion()
    start.wait(30)
    try:
        store.advance(expected, version, "promote", f"{version} won")
    except ConflictError as problem:
        assert "won" in str(problem)
        return False
    return True


def test_of_racing_threads_exactly_one_advances(root: str, store: LineStore) -> None:
    versions = [publish(store, step).version for step in range(4)]
    for generation in range(1, 6):
        start = Barrier(len(versions))
        with ThreadPoolExecutor(len(versions)) as pool:
            won = pool.map(lambda v, s=start: try_to_advance(LineStore(root, "x"), v, s), versions)
            assert sum(won) == 1
        champion = store.champion()
        assert champion is not None
        assert champion.generation == generation
        assert champion.reason == f"{champion.version} won"


def race(root: str, version: str, start: Any, won: Any) -> None:
    assert "tensorflow" not in sys.modules  # the line store is NumPy only
    if try_to_advance(LineStore(root, "x"), version, start):
        won.put(version)


@pytest.mark.slow
def test_of_racing_processes_exactly_one_advances(root: str, store: LineStore) -> None:
    versions = [publish(store, step).version for step in range(2)]
    context = multiprocessing.get_context("spawn")  # a fork would inherit TensorFlow's threads
    start, won = context.Barrier(2), context.SimpleQueue()
    processes = [
        context.Process(target=race, args=(root, version, start, won)) for version in versions
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    (champion,) = store.history()
    assert won.get() == champion.version
    assert won.empty()


def promoted(store: LineStore, *steps: int) -> list[str]:
    names = []
    for step in steps:
        names.append(publish(store, step).version)
        store.advance(store.champion(), names[-1], "promote", "")
    return names


def test_rollback_adds_a_generation_with_the_earlier_version(store: LineStore) -> None:
    one, two, three = promoted(store, 1, 2, 3)
    before = store.history()
    back = store.rollback(reason="bad")
    assert (back.generation, back.version, back.previous) == (4, two, three)
    assert (back.action, back.reason) == ("rollback", "bad")
    assert store.rollback().version == one  # further back, not to the bad one again
    assert store.history()[:3] == before
    assert same_bits(store.load(store.history()[-1].version)[1], state(1))


def test_rollback_after_a_new_promotion_returns_to_what_served_before(store: LineStore) -> None:
    one, _ = promoted(store, 1, 2)
    store.rollback()
    promoted(store, 3)
    assert store.rollback().version == one


def test_earlier_champions_are_those_that_no_rollback_took_back(store: LineStore) -> None:
    assert list(store.earlier()) == []
    one, two, _ = promoted(store, 1, 2, 3)
    assert [champion.version for champion in store.earlier()] == [two, one]
    store.rollback()  # the third was bad
    assert [champion.version for champion in store.earlier()] == [one]
    (four,) = promoted(store, 4)
    assert [champion.version for champion in store.earlier()] == [two, one]
    promoted(store, 5)
    store.rollback()
    store.rollback()
    assert store.champion().version == two
    assert [champion.version for champion in store.earlier()] == [one]
    promoted(store, 6)
    assert four not in [champion.version for champion in store.earlier()]


def test_rollback_can_name_its_version(store: LineStore) -> None:
    promoted(store, 1, 2)
    unpromoted = publish(store, 3).version
    assert store.rollback(to=unpromoted, reason="by hand").version == unpromoted
    with pytest.raises(InputError, match="v000099"):
        store.rollback(to="v000099")


def test_rollback_without_an_earlier_version_says_so(store: LineStore) -> None:
    with pytest.raises(InputError, match="no champion yet"):
        store.rollback()
    promoted(store, 1)
    with pytest.raises(InputError, match="no champion but 'v000001'"):
        store.rollback()


def test_an_altered_champion_record_is_found(store: LineStore, root: str) -> None:
    promoted(store, 1, 2)
    record = "champion/00000002.json"
    body = json.loads(content(root, record))
    overwrite(root, record, json.dumps({**body, "version": "v000001"}).encode())
    with pytest.raises(IntegrityError, match="altered"):
        store.champion()
    overwrite(root, record, b"{")
    with pytest.raises(IntegrityError, match="torn"):
        LineStore(root, "x").champion()


def test_evidence_and_verdict_are_kept_with_their_version(store: LineStore) -> None:
    version = publish(store).version
    assert store.evidence(version) is None
    assert store.verdict(version) is None
    store.put_evidence(version, {"rows": 5, "logloss": float("nan"), "interval": (1, 2)})
    store.put_verdict(version, {"passed": False, "reasons": ["a"]})
    store.put_verdict(version, {"passed": True, "reasons": []})
    found = store.evidence(version)
    assert found is not None
    assert (found["rows"], found["interval"]) == (5, [1, 2])
    assert np.isnan(found["logloss"])
    assert store.verdict(version) == {"passed": True, "reasons": []}
    with pytest.raises(InputError, match="v000077"):
        store.put_evidence("v000077", {})


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    store = LineStore(tmp_path, "x")
    promoted(store, 1, 2)
    with pytest.raises(ConflictError):
        store.advance(None, "v000001", "promote", "")
    assert [p for p in tmp_path.rglob(".*") if p.is_file()] == []
