"""The race at the server: who is drawn, whose model answers, what shadows log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace import contest
from headrace.events import input_fields
from headrace.line.races import Races
from headrace.log.files import FileLog
from headrace.race.arms import CHAMPION, Rules
from headrace.raw import Candidates
from headrace.serving.arms import ALONE, SHADOW_SCHEMA, Arms
from headrace.serving.served import ServedWriter
from tests.contract import served_line
from tests.contract import written_line as written
from tests.contract.served_line import ServedLine


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root, start_us = tmp_path_factory.mktemp("armed"), written.START_US
    served_line.begin(root)
    served_line.opened(root).train(30, epochs=3)
    yield root
    written.START_US = start_us


@pytest.fixture
def line(begun: Path, tmp_path: Path) -> ServedLine:
    return served_line.copied(begun, tmp_path)


@contextmanager
def serving(line: ServedLine) -> Iterator[Arms]:
    log = FileLog(line.home / "log" / "shadow", SHADOW_SCHEMA, writer=True)
    writer = ServedWriter(log, linger_s=0.01)
    writer.start()
    arms = Arms(line.spec, line.store, writer, poll_s=0.02)
    arms.start()
    try:
        yield arms
    finally:
        arms.stop()
        writer.stop()
        log.close()


def until(claim: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def race(line: ServedLine, rules: Rules | None = None, **arms: dict) -> None:
    found = contest.Contest(line.settings, line.spec)
    made = [contest.make_arm(**({"name": n, "version": "v000002"} | a)) for n, a in arms.items()]
    found.start(made, "user_id", rules, "test")


def drawn(arms: Arms, requests: int = 400) -> Counter[tuple[str, float]]:
    found: Counter[tuple[str, float]] = Counter()
    for i in range(requests):
        draw = arms.draw(f"q{i}", Candidates({"user_id": [f"u{i}"], "item_id": ["i1"]}, 1))
        found[draw.arm, round(draw.propensity, 6)] += 1
    return found


def of_a(arms: Arms) -> str:
    users = (f"u{i}" for i in range(1_000))
    return next(u for u in users if arms.draw("q", Candidates({"user_id": [u]}, 1)).arm == "a")


def test_a_split_begins_grows_and_ends_while_the_server_runs(line: ServedLine) -> None:
    inputs = pa.table({f.name: pa.array([3]).cast(f.type) for f in input_fields(line.spec)})
    with serving(line) as arms:
        assert drawn(arms) == {(CHAMPION, 1.0): 400}
        assert arms.about() is None
        race(line, a={"mode": "split", "share": 0.25})
        until(arms.about)
        found = drawn(arms)
        assert set(found) == {(CHAMPION, 0.75), ("a", 0.25)}
        assert 60 <= found["a", 0.25] <= 140
        follower = arms.draw("q", Candidates({"user_id": [of_a(arms)]}, 1)).follower
        assert follower is not None
        with follower.use() as loaded:
            assert loaded.version.version == "v000002"
            scores = loaded.model.predict(inputs)
        own = line.score("v000002", {n: inputs[n].to_numpy() for n in inputs.column_names})
        assert scores.tolist() == own.tolist()
        race(line, a={"mode": "split", "share": 0.5})
        until(lambda: drawn(arms)["a", 0.5] > 120)
        contest.Contest(line.settings, line.spec).leave(None, "stop", "test")
        until(lambda: arms.about() is None)
        assert arms.draw("q", Candidates({"user_id": ["u"]}, 1)) == ALONE
        with follower.use() as loaded:  # a request that drew it before it left
            assert loaded.model.predict(inputs).tolist() == own.tolist()


def test_an_arm_that_cannot_be_loaded_leaves_its_traffic_to_the_champion(line: ServedLine) -> None:
    (state,) = (line.home / "versions" / "v000002").glob("*.zst")
    state.write_bytes(b"torn")
    with serving(line) as arms:
        race(line, a={"mode": "split", "share": 0.5})
        until(lambda: arms._runners["a"][2].fault if "a" in arms._runners else None)
        assert drawn(arms) == {(CHAMPION, 1.0): 400}


def test_thompson_follows_the_tally_and_logs_its_odds(line: ServedLine) -> None:
    with serving(line) as arms:
        race(line, Rules(explore=0.05), a={"mode": "thompson"})
        until(arms.about)
        assert set(drawn(arms)) == {(CHAMPION, 0.5), ("a", 0.5)}
        races = Races(line.store)
        running = races.running()
        assert running is not None
        races.put_tally(running[1].name, {CHAMPION: (10.0, 990.0), "a": (90.0, 910.0)})
        until(lambda: ("a", 0.95) in drawn(arms))
        found = drawn(arms)
        assert set(found) == {(CHAMPION, 0.05), ("a", 0.95)}
        assert found["a", 0.95] > 350


def test_shadows_log_their_scores_behind_the_request_and_shed_without_room(
    line: ServedLine,
) -> None:
    inputs = pa.table({f.name: pa.array([3, 4]).cast(f.type) for f in input_fields(line.spec)})
    with serving(line) as arms:
        arms.shadow("nobody", 1, inputs)
        race(line, dark={"mode": "shadow"})
        until(arms.about)
        assert drawn(arms) == {(CHAMPION, 1.0): 400}
        arms.shadow("q1", 5, inputs)
        log = FileLog(line.home / "log" / "shadow", SHADOW_SCHEMA)
        until(lambda: log.head == 2)
        rows = log.read(0, 2).to_pylist()
        own = line.score("v000002", {n: inputs[n].to_numpy() for n in inputs.column_names})
        assert [row["score"] for row in rows] == own.tolist()
        assert [(r["impression_id"], r["arm"], r["version"]) for r in rows] == [
            ("q1:0", "dark", "v000002"),
            ("q1:1", "dark", "v000002"),
        ]
        for i in range(2_000):
            arms.shadow(f"q{i}", 5, inputs)
        assert arms.shed > 0
        assert np.isfinite(log.read(0, log.head)["score"].to_numpy()).all()
