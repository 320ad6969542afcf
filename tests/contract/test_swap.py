"""Two models follow the champion: by deltas, from memory or from a base, and never by halves."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, IntegrityError
from headrace.line import LineStore, Version, compaction
from headrace.model import State
from headrace.serving.resident import Resident
from headrace.serving.swap import NICE, Follower
from tests.contract.delta_writer import ABOUT, Writer, fifty_rows, served, small_line
from tests.serving import until


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


def test_deltas_are_applied_in_order_to_two_models_that_take_turns(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    models = [follower.current().model]
    for _ in range(5):
        version = writer.next()
        assert follower.follow()
        assert not follower.follow()
        assert follower.current().version == version
        assert np.array_equal(served(follower, asked), writer.scores(version.version, asked))
        models.append(follower.current().model)
    assert len({id(model) for model in models}) == 2
    assert models[0] is models[2] is models[4]
    told = follower.delivery()
    # the second model came from its base; from then on each is two deltas behind, then current
    assert (told["bases"], told["deltas"], told["refused"]) == (2, 8, 0)


def test_settled_is_said_once_when_both_models_are_there(
    tmp_path: Path, spec: LineSpec, writer: Writer
) -> None:
    said: list[Any] = []
    follower = Follower(
        spec, LineStore(tmp_path, spec.line), settled=lambda: said.append(follower.delivery())
    )
    follower.start(prepare=lambda: None)
    until(lambda: bool(said))
    for _ in range(2):
        newest = writer.next().version
        until(lambda newest=newest: follower.current().version.version == newest)
    follower.stop()
    assert [each["waiting"] for each in said] == [next(iter(writer.states))]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority")
def test_who_follows_steps_back_once_both_models_are_there_and_not_before(
    tmp_path: Path, spec: LineSpec, writer: Writer
) -> None:
    found: list[tuple[int, int]] = []

    class Lines(LineStore):
        def load(self, version: str) -> tuple[Version, State]:
            self.look()
            return super().load(version)

        def delta(self, version: Version) -> State:
            self.look()
            return super().delta(version)

        @staticmethod
        def look() -> None:
            me = threading.get_native_id()
            found.append((os.getpriority(os.PRIO_PROCESS, me), os.sched_getscheduler(me)))

    mine = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
    follower = Follower(spec, Lines(tmp_path, spec.line))
    follower.start(prepare=lambda: None)
    until(lambda: follower.ready and follower.delivery()["waiting"] is not None)
    newest = writer.next().version
    until(lambda: follower.current().version.version == newest)
    follower.stop()
    assert found == [mine, (max(mine[0], NICE), os.SCHED_BATCH)]
    assert (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)) == mine


def test_a_model_several_versions_behind_catches_up(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    writer.next()
    follower.follow()
    for _ in range(3):
        newest = writer.next()
    assert follower.follow()
    assert follower.delivery()["deltas"] == 4
    assert np.array_equal(served(follower, asked), writer.scores(newest.version, asked))


def test_a_rollback_to_the_version_before_is_a_flip_and_learning_goes_on_from_it(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    good = writer.next()
    follower.follow()
    bad = writer.delta(good.version)
    writer.promote(bad, "force")
    follower.follow()
    assert follower.current().version == bad
    assert writer.lines.rollback(reason="bad").version == good.version
    assert follower.follow()
    assert follower.delivery()["from_memory"] == 1
    assert np.array_equal(served(follower, asked), writer.scores(good.version, asked))
    after = writer.next()  # the waiting model holds the bad version, which leads nowhere
    assert follower.follow()
    assert after.parent == good.version
    assert np.array_equal(served(follower, asked), writer.scores(after.version, asked))


@pytest.mark.parametrize("keep", [40, None], ids=["torn", "missing"])
def test_a_torn_or_missing_delta_is_refused_and_repaired_from_the_newest_base(
    writer: Writer, follower: Follower, asked: pa.Table, keep: int | None
) -> None:
    writer.next()
    follower.follow()
    hurt = writer.next()
    newest = writer.next()
    compaction.compact(writer.lines, newest)
    writer.damage(hurt, keep)
    assert follower.follow()
    told = follower.delivery()
    assert told["refused"] == 1
    assert f"{hurt.version}/state" in told["last_refused"]
    assert np.array_equal(served(follower, asked), writer.scores(newest.version, asked))


def test_without_a_base_to_repair_from_the_old_version_serves_until_there_is_one(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    good = writer.next()
    follower.follow()
    hurt = writer.next()
    whole = writer.lines.files.read(f"versions/{hurt.version}/state.safetensors.zst")
    assert whole is not None
    writer.damage(hurt, 40)
    for _ in range(3):
        with pytest.raises(IntegrityError, match="SHA-256"):
            follower.follow()
    assert follower.delivery()["refused"] == 1  # told once, however often it is tried
    assert np.array_equal(served(follower, asked), writer.scores(good.version, asked))
    writer.lines.files.replace(f"versions/{hurt.version}/state.safetensors.zst", whole)
    assert follower.follow()
    assert np.array_equal(served(follower, asked), writer.scores(hurt.version, asked))


def test_a_delta_that_leads_elsewhere_is_refused_before_it_touches_the_model(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    good = writer.next()
    follower.follow()
    wrong = writer.delta(good.version, fingerprint=42)
    resident = Resident(writer.spec)
    resident.load(good, writer.states[good.version])
    with pytest.raises(IntegrityError, match="does not lead to the state"):
        resident.advance(wrong, writer.lines.delta(wrong))
    assert resident.version == good
    assert np.array_equal(resident.model.predict(asked), writer.scores(good.version, asked))
    writer.promote(wrong)
    with pytest.raises(IntegrityError, match="do not add up"):
        follower.follow()
    assert follower.current().version == good


def test_a_delta_out_of_order_is_refused(writer: Writer, follower: Follower) -> None:
    first, second = writer.next(), writer.next()
    resident = Resident(writer.spec)
    base = writer.lines.get("v000001")
    with pytest.raises(IntegrityError, match="stands at no version"):
        resident.advance(first, writer.lines.delta(first))
    resident.load(base, writer.states["v000001"])
    with pytest.raises(IntegrityError, match=f"follows {first.version}.*stands at v000001"):
        resident.advance(second, writer.lines.delta(second))
    assert resident.version == base


def test_a_row_that_the_table_lacks_is_refused(writer: Writer, follower: Follower) -> None:
    base = writer.lines.get("v000001")
    changes: State = {
        "rows/table": np.array([1 << 20]),
        "values/table": np.zeros((1, writer.states["v000001"]["table"].shape[1]), np.float32),
    }
    version = writer.lines.publish_delta(changes, parent=base, fingerprint=1, **ABOUT)
    resident = Resident(writer.spec)
    resident.load(base, writer.states["v000001"])
    with pytest.raises(IntegrityError, match="rows 0 to 1023"):
        resident.advance(version, changes)


def test_a_model_in_use_is_not_touched_before_it_is_let_go(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    writer.next()
    follower.follow()
    with ThreadPoolExecutor(1) as pool:
        with follower.use() as held:
            expected = held.model.predict(asked)
            writer.next()
            assert follower.follow()  # the other model takes over
            newest = writer.next()
            waiting = pool.submit(follower.follow)  # this one needs the model that is in use
            for _ in range(20):
                assert np.array_equal(held.model.predict(asked), expected)
                assert follower.current().version.version != newest.version
                time.sleep(0.005)
            assert not waiting.done()
        assert waiting.result(30)
    assert np.array_equal(served(follower, asked), writer.scores(newest.version, asked))


def test_under_load_every_answer_is_of_one_whole_version(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    answers: list[tuple[str, NDArray[np.float64]]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            with follower.use() as loaded:
                answers.append((loaded.version.version, loaded.model.predict(asked)))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            for number in range(9):
                if number % 4 == 3:
                    writer.lines.rollback(reason="test")
                else:
                    writer.next()
                follower.follow()
                time.sleep(0.02)
        finally:
            done.set()
        for each in asking:
            each.result(30)
    expected = {name: writer.scores(name, asked) for name in {name for name, _ in answers}}
    assert len(expected) > 4
    for version, scores in answers:
        assert np.array_equal(scores, expected[version])


def previous(follower: Follower, asked: pa.Table) -> tuple[str, NDArray[np.float64]]:
    with follower.use_previous() as loaded:
        return loaded.version.version, loaded.model.predict(asked)


def test_the_version_before_waits_to_stand_in_and_one_that_was_rolled_back_never_does(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    with pytest.raises(EnvironmentFault, match="no version before v000001"):
        previous(follower, asked)
    good = writer.next()
    follower.follow()
    assert previous(follower, asked)[0] == "v000001"
    writer.next()
    follower.follow()
    version, scores = previous(follower, asked)
    assert version == good.version
    assert np.array_equal(scores, writer.scores(good.version, asked))
    writer.lines.rollback(reason="bad")
    follower.follow()
    with pytest.raises(EnvironmentFault, match=f"no version before {good.version} is in memory"):
        previous(follower, asked)
    follower._have_asked_wait()  # what its thread does next
    version, scores = previous(follower, asked)
    assert version == "v000001"
    assert np.array_equal(scores, writer.scores("v000001", asked))
    after = writer.next()
    follower.follow()
    assert np.array_equal(served(follower, asked), writer.scores(after.version, asked))


def test_a_champion_that_cannot_be_loaded_is_missed_and_others_stand_in(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    good = writer.next()
    follower.follow()
    with follower.use() as loaded:
        assert not follower.stands_in(loaded)
    hurt = writer.next()
    writer.damage(hurt, 40)
    with pytest.raises(IntegrityError, match="SHA-256"):
        follower.follow()
    with follower.use() as loaded:
        assert follower.stands_in(loaded)
    assert follower.delivery()["missed"] == hurt.version
    fresh = Follower(writer.spec, writer.lines)  # a server that starts now
    with pytest.raises(IntegrityError, match="SHA-256"):
        fresh.follow()
    with fresh.use() as loaded:
        assert (loaded.version, fresh.stands_in(loaded)) == (good, True)
        assert np.array_equal(loaded.model.predict(asked), writer.scores(good.version, asked))
    writer.lines.rollback(reason="damaged")
    assert fresh.follow()
    with fresh.use() as loaded:
        assert (loaded.version, fresh.stands_in(loaded)) == (good, False)


def test_a_start_goes_back_only_where_the_line_declares_it(writer: Writer) -> None:
    writer.damage(writer.next(), 40)
    alone = writer.spec.serving.model_copy(update={"fallback": ()})
    fresh = Follower(writer.spec.model_copy(update={"serving": alone}), writer.lines)
    with pytest.raises(IntegrityError):
        fresh.follow()
    assert not fresh.ready


def test_a_champion_whose_scores_are_not_finite_never_serves(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    held = follower.current().version
    before = writer.states[held.version]
    whole = {name: array.copy() for name, array in before.items()}
    whole["linear"] = np.full_like(whole["linear"], np.nan)
    bad = writer.lines.publish(whole, parent=None, **ABOUT)
    writer.promote(bad, "force")
    for _ in range(2):
        with pytest.raises(IntegrityError, match=f"{bad.version} gives scores that are not finite"):
            follower.follow()
        with pytest.raises(EnvironmentFault):
            previous(follower, asked)
    assert np.array_equal(served(follower, asked), writer.scores(held.version, asked))
    good = writer.delta(held.version)
    writer.promote(good)
    assert follower.follow()
    assert np.array_equal(served(follower, asked), writer.scores(good.version, asked))


@pytest.mark.slow
def test_no_answer_of_the_version_before_is_half_of_another(
    writer: Writer, follower: Follower, asked: pa.Table
) -> None:
    answers: list[tuple[str, NDArray[np.float64]]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            with suppress(EnvironmentFault):
                answers.append(previous(follower, asked))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            for _ in range(8):
                writer.next()
                follower.follow()
                time.sleep(0.02)
        finally:
            done.set()
        for each in asking:
            each.result(30)
    expected = {name: writer.scores(name, asked) for name in {name for name, _ in answers}}
    assert len(expected) > 4
    for version, scores in answers:
        assert np.array_equal(scores, expected[version])
