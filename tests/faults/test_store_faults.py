"""Versions in S3 and MLflow's PostgreSQL while the network is cut and the database is killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from headrace import tracking
from headrace.errors import ConflictError, EnvironmentFault
from headrace.line import LineStore
from headrace.settings import PROJECT, find_line, load_settings
from tests.contract.test_line import publish, state
from tests.contract.test_tracking import promoted
from tests.diary import Diary, Work
from tests.faults.proxy import Proxy
from tests.faults.told import accounted, tell
from tests.lives import Lives
from tests.postgres import Postgres, running
from tests.s3_server import forget_clients, s3_bucket, s3_server

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

TEST = "tests/faults/test_store_faults.py"
VERSIONS = 10
CUTS = 15
STEPS = 25
KILLS = 80


@contextmanager
def blows(proxy: Proxy, dice: random.Random, apart_s: float) -> Iterator[list[float]]:
    """Cut and heal the network at `CUTS` random moments; the moments at which it was healed."""
    ended, healed = threading.Event(), [time.monotonic()]

    def run() -> None:
        for _ in range(CUTS):  # not for ever: a slow machine would never get a call through
            if ended.wait(dice.uniform(0, apart_s)):
                return
            proxy.cut()
            time.sleep(dice.uniform(0, 0.2))
            proxy.heal()
            healed.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield healed
    finally:
        ended.set()
        thread.join()
        proxy.heal()


def test_two_publishers_and_a_network_that_breaks_leave_one_chain_of_whole_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dice, recovered, again = random.Random(12), [], []
    with s3_server() as server, s3_bucket(server, "faults") as bucket:
        port = urlsplit(os.environ["AWS_ENDPOINT_URL"]).port
        assert port is not None
        with Proxy(port) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
            forget_clients()
            rival_wins, faults = 0, 0

            def once(step: int) -> bool:
                """Publish and promote a step behind the champion, as one of two would."""
                store = LineStore(bucket, "x")
                champion = store.champion()
                if champion is not None and store.get(champion.version).rows >= step:
                    return True  # the answer was lost, the promotion was not
                version = publish(store, step, None if champion is None else champion.version)
                store.advance(champion, version.version, "promote", "")
                return True

            with blows(proxy, dice, 0.4) as healed:
                for step in range(1, VERSIONS + 1):
                    met = 0
                    while True:
                        try:
                            once(step)
                            break
                        except EnvironmentFault:
                            met, faults = met + 1, faults + 1
                        except ConflictError:
                            rival_wins += 1
                    if met:
                        recovered.append(max(time.monotonic() - healed[-1], 0.0))
                        again.append(met)
            forget_clients()
            store = LineStore(bucket, "x")
            history = store.history()
            steps = [store.get(champion.version).rows for champion in history]
            for champion, step in zip(history, steps, strict=True):
                loaded = store.load(champion.version)[1]
                wanted = state(step)
                assert all(np.array_equal(loaded[name], wanted[name]) for name in wanted)
        forget_clients()
    counts = accounted([step - 1 for step in steps], VERSIONS)
    assert counts == {"lost": 0, "duplicated": 0}
    assert steps == list(range(1, VERSIONS + 1))
    assert faults > 2
    tell(
        "s3_network_cuts",
        "the network between a publisher and S3 cut in mid-write",
        TEST,
        {"that a call met": faults, "between calls": max(proxy.cuts - faults, 0)},
        "one chain of champions, each version whole, bit for bit",
        counts,
        recovered,
        again,
        "publications",
    )


def live(root: str) -> None:
    """What a publisher does: behind the champion that it finds, a step after the other."""
    store, diary = LineStore(root, "x"), Diary(Path(f"{root}.diary"))
    while (champion := store.champion()) is None or store.get(champion.version).rows < STEPS:
        step = 1 if champion is None else store.get(champion.version).rows + 1
        diary.begins(step)
        version = publish(store, step, None if champion is None else champion.version)
        store.advance(champion, version.version, "promote", "")
        diary.done(step)


def test_a_publisher_killed_at_random_moments_leaves_one_chain_of_whole_versions(
    tmp_path: Path,
) -> None:
    dice, kills, moved, works = random.Random(14), 0, 0, []
    with Lives("tests.faults.test_store_faults:live", ("headrace.line",)) as lives:
        calm = lives.live(str(tmp_path / "calm"))
        assert calm.code == 0
        while kills < KILLS:  # a run through all steps, as many as the kills need
            root, ended, killed_at = str(tmp_path / f"stormy{len(works)}"), False, []
            while not ended:
                before = len(LineStore(root, "x").history())
                life = lives.live(root, kill_after_s=dice.uniform(0, calm.lived_s / 4))
                kills, ended = kills + life.killed, not life.killed
                killed_at += [time.monotonic()] * life.killed
                moved += life.killed and len(LineStore(root, "x").history()) > before
                assert life.killed or life.code == 0
            store = LineStore(root, "x")
            steps = [store.get(champion.version).rows for champion in store.history()]
            assert steps == list(range(1, STEPS + 1))
            for champion, step in zip(store.history(), steps, strict=True):
                loaded, wanted = store.load(champion.version)[1], state(step)
                assert all(np.array_equal(loaded[name], wanted[name]) for name in wanted)
            works.append(Work.between(Path(f"{root}.diary"), killed_at))
    work = Work.of(works)
    counts = accounted([step - 1 for step in steps], STEPS)
    assert counts == {"lost": 0, "duplicated": 0}
    assert moved > KILLS / 4
    tell(
        "publisher_kills",
        "a publisher of versions killed by SIGKILL at random moments",
        TEST,
        {"with versions promoted in that life": moved, "without": kills - moved},
        "one chain of champions, each version whole, bit for bit",
        counts,
        work.recovered_s,
        work.repeated,
        "publications",
    )


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with running() as server:
        yield server


def test_a_postgresql_that_dies_in_mid_mirror_costs_no_promotion_and_doubles_no_run(
    postgres: Postgres, tmp_path: Path
) -> None:
    spec = find_line(load_settings({}), "coupons")
    store, dice = LineStore(tmp_path / "x", spec.line), random.Random(13)
    promoted(store, 0)
    assert tracking.mirror(store, spec, postgres.url).problem is None  # makes its tables
    kills, failures, recovered, again = 3, 0, [], []
    for kill in range(kills):
        names = [promoted(store, 1 + 4 * kill + step) for step in range(4)]
        passing = threading.Thread(target=tracking.mirror, args=(store, spec, postgres.url))
        passing.start()
        time.sleep(dice.uniform(0, 0.4))
        postgres.kill()
        passing.join()
        assert store.champion() is not None
        failures += tracking.mirror(store, spec, postgres.url).problem is not None
        postgres.start()
        began = time.monotonic()
        again.append(1)
        after = tracking.mirror(store, spec, postgres.url)
        while after.problem is not None:  # its first connections are those that were killed
            again[-1] += 1
            after = tracking.mirror(store, spec, postgres.url)
        recovered.append(time.monotonic() - began)
        assert all(tracking.tracked(store, name) for name in names)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=postgres.url, registry_uri=postgres.url)
    found = client.search_model_versions(f"name = '{spec.line}'")
    numbers = [int(version.tags["headrace.version"][1:]) - 1 for version in found]
    counts = accounted(numbers, 1 + 4 * kills)
    assert counts == {"lost": 0, "duplicated": 0}
    champion = store.champion()
    assert champion is not None
    alias = client.get_model_version_by_alias(spec.line, "champion")
    assert alias.tags["headrace.version"] == champion.version
    assert failures == kills
    tell(
        "postgresql_kills",
        "MLflow's PostgreSQL killed in mid-write and started again",
        TEST,
        {"while versions were mirrored": kills},
        "every version mirrored once, aliases as in the line; promotions did not wait",
        counts,
        recovered,
        again,
        "passes",
    )


def test_of_two_writers_of_one_line_one_wins_each_generation(tmp_path: Path) -> None:
    """Two processes in the place of two learners: each publishes behind the champion it saw."""
    root, rounds = str(tmp_path / "line"), 40
    first = publish(LineStore(root, "x"), 0)
    LineStore(root, "x").advance(None, first.version, "promote", "")
    code = (
        "import sys\n"
        "from headrace.line import LineStore\n"
        "from headrace.errors import ConflictError\n"
        "from tests.contract.test_line import publish\n"
        "lost = 0\n"
        "for step in range(1, int(sys.argv[2]) + 1):\n"
        "    store = LineStore(sys.argv[1], 'x')\n"
        "    seen = store.champion()\n"
        "    mine = publish(store, store.get(seen.version).rows + 1, seen.version)\n"
        "    try:\n"
        "        store.advance(seen, mine.version, 'promote', sys.argv[3])\n"
        "    except ConflictError:\n"
        "        lost += 1\n"
        "print(lost)\n"
    )
    command: Callable[[str], list[str]] = lambda who: [  # noqa: E731
        *(sys.executable, "-c", code, root, str(rounds), who)
    ]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command(who), stdout=pipe, text=True, cwd=PROJECT) for who in "ab"]
    lost = [int(one.communicate(timeout=300)[0]) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    store = LineStore(root, "x")
    steps = [store.get(champion.version).rows for champion in store.history()]
    assert steps == list(range(len(steps)))  # each learned once, behind the one before
    assert len(steps) - 1 + sum(lost) == 2 * rounds
    counts = accounted(steps, len(steps))
    assert counts == {"lost": 0, "duplicated": 0}
    tell(
        "two_writers",
        "two writers of one line at once",
        TEST,
        {"promotions": len(steps) - 1, "told that another was first": sum(lost)},
        "one chain of champions, in which every step is learned once",
        counts,
        repeated=[1] * sum(lost),  # who was second trains behind the other
        unit="publications",
    )
