"""The scoring server while the network to Redis is cut, its disk is slow, and it is killed."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import numpy as np
import pytest

from bench._redis import ABSENT, RedisServer, installed
from headrace.declaration import LineSpec
from headrace.events import served_schema
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.model import Model
from headrace.settings import Settings, find_line, load_settings
from tests.campaign import free_port
from tests.contract.conftest import _apply
from tests.contract.test_fallback import ASKED, pushed
from tests.faults.proxy import Proxy
from tests.faults.slow import slow_disk
from tests.faults.told import tell
from tests.serving import advance, until

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(900)]

TEST = "tests/faults/test_server_faults.py"
CUTS, KILLS, SLOW = 12, 4, 4


class Answer(NamedTuple):
    """What came of a request; the clock is the machine's monotonic one."""

    request_id: str
    at: float
    status: int
    body: dict[str, Any]

    @property
    def fallback(self) -> str:
        return str(self.body.get("fallback"))


class Asker:
    """An application that asks without a pause, one request after the other."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=30)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answers: list[Answer] = []
        self.refused = 0

    def _run(self) -> None:
        for number in itertools.count():
            if self._ends.is_set():
                return
            asked = {"request_id": f"r{number}", **ASKED}
            try:
                got = self._client.post("/v1/score", json=asked)
            except httpx.TransportError:
                self.refused += 1
                time.sleep(0.02)
                continue
            if got.status_code == 503:  # it starts, and has no model yet
                self.refused += 1
                continue
            now = time.monotonic()
            self.answers.append(Answer(f"r{number}", now, got.status_code, got.json()))

    def answered(self, fallback: str) -> float:
        """The moment of the next answer of that kind."""
        seen, found = len(self.answers), list[float]()

        def one() -> bool:
            found[:] = [each.at for each in self.answers[seen:] if each.fallback == fallback]
            return bool(found)

        until(one, 120)
        return found[0]

    def rest(self) -> None:
        """Wait for the answer under way and ask no more."""
        self._ends.set()
        self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()
        self._client.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    if not installed():
        pytest.skip(ABSENT)
    server = RedisServer(tmp_path, "h@sh")
    server.start()
    yield server
    server.stop()


def published(settings: Settings, spec: LineSpec) -> str:
    """A version whose scores depend on every feature."""
    state, rng = Model(spec.model, spec.seed).state(), np.random.default_rng(5)
    for name in ("table", "dense"):
        drawn = np.abs(rng.normal(size=state[name].shape))
        state[name] = (state[name] + drawn).astype(np.float32)
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    return store.publish(
        state, parent=None, from_tick=0, to_tick=1, excluded=[], watermark_us=1, event_at_us=1,
        feature_service=spec.feature_service, code="test", rows=0, metrics={"label_rate": 0.25},
    ).version  # fmt: skip


def shop(folder: Path, online_store: str) -> tuple[Settings, LineSpec, dict[str, str]]:
    """A line with a champion and one row of each view online; its environment."""
    places = {f"HEADRACE_{name}_PORT": str(free_port()) for name in ("SERVER", "GRPC")}
    environ = places | {"HEADRACE_ONLINE_STORE": online_store}
    made = _apply(folder, **environ)
    environ |= {"HEADRACE_HOME": str(made.home), "HEADRACE_LINES_DIR": str(folder / "lines")}
    settings = load_settings(environ)
    spec = find_line(settings, "shop")
    pushed(settings, spec, time.time_ns() // 1_000)
    advance(settings, spec, published(settings, spec))
    return settings, spec, environ


def begun(environ: dict[str, str]) -> subprocess.Popen[bytes]:
    """`headrace serve`, which answers after some seconds."""
    command = [str(Path(sys.executable).with_name("headrace")), "serve", "--line", "shop"]
    return subprocess.Popen(command, env=os.environ | environ, stderr=subprocess.DEVNULL)


@contextmanager
def serving(environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The process; it ends in order, so that all it has answered is logged."""
    process = begun(environ)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def logged(settings: Settings, spec: LineSpec) -> list[dict[str, Any]]:
    log = FileLog(settings.line_home(spec.line) / "log" / "served", served_schema(spec))
    return list(log.read(0, log.head).to_pylist())


def counted(answers: list[Answer], rows: list[dict[str, Any]]) -> dict[str, int]:
    """Vectors of answers that are not in the log, and those that are there once too often."""
    held = Counter((row["request_id"], row["item"]) for row in rows)
    told = {(one.request_id, item["item"]) for one in answers for item in ASKED["candidates"]}
    return {
        "lost": len(told - held.keys()),
        "duplicated": sum(times - 1 for times in held.values()),
    }


def right(answers: list[Answer], rows: list[dict[str, Any]]) -> None:
    """Every answer is a score of the vector that its log row holds: stored values, or none."""
    by_key = {(row["request_id"], row["item"]): row for row in rows}
    scores: dict[tuple[Any, ...], set[float]] = {}
    for one in answers:
        assert (one.status, one.fallback in ("none", "defaults")) == (200, True), one
        for candidate, score in zip(ASKED["candidates"], one.body["scores"], strict=True):
            row = by_key.get((one.request_id, candidate["item"]))
            if row is None:
                continue
            assert (row["fallback"] or "none", row["score"]) == (one.fallback, score["score"])
            known = 9 if one.fallback == "none" else 0
            assert row["user_views_count_1h"] == known
            kind = (one.fallback, candidate["item"], row["hour"])
            scores.setdefault(kind, set()).add(score["score"])
    assert all(len(each) == 1 for each in scores.values()), scores
    assert len(set.union(*scores.values())) == len(scores)  # which vector it was can be told


def test_a_network_cut_between_server_and_redis_is_stood_in_for_and_then_forgotten(
    redis: RedisServer, tmp_path: Path
) -> None:
    dice, recovered = random.Random(17), list[float]()
    with Proxy(redis.port) as proxy:
        url = redis.url.replace(str(redis.port), str(proxy.port))
        settings, spec, environ = shop(tmp_path, url)
        with serving(environ), Asker(settings.server_url) as asker:
            asker.answered("none")
            for _ in range(CUTS):
                time.sleep(dice.uniform(0.1, 0.4))
                proxy.cut()
                asker.answered("defaults")
                time.sleep(dice.uniform(0, 0.6))
                assert asker.answers[-1].fallback == "defaults"
                proxy.heal()
                healed = time.monotonic()
                recovered.append(asker.answered("none") - healed)
        rows = logged(settings, spec)
    right(asker.answers, rows)
    counts = counted(asker.answers, rows)
    assert counts == {"lost": 0, "duplicated": 0}
    during = sum(one.fallback == "defaults" for one in asker.answers)
    tell(
        "server_redis_cuts",
        "the network between the scoring server and Redis cut while it answers",
        TEST,
        {"while requests were asked": CUTS},
        f"{len(asker.answers)} answers, none refused: {during} said `defaults`, all others have "
        "the scores of an undisturbed run; every vector is logged",
        counts,
        recovered,
    )


def test_a_slow_disk_under_the_server_holds_no_answer_up_and_loses_no_vector(
    redis: RedisServer, tmp_path: Path
) -> None:
    held = 0
    settings, spec, environ = shop(tmp_path, redis.url)
    with serving(environ) as process, Asker(settings.server_url) as asker:
        asker.answered("none")
        for _ in range(SLOW):
            with slow_disk(process.pid, 0.5, tmp_path) as slowness:
                before = len(asker.answers)
                time.sleep(2)
                during = asker.answers[before:]
            held += slowness.calls
            assert during
    rows = logged(settings, spec)
    right(asker.answers, rows)
    counts = counted(asker.answers, rows)
    assert counts == {"lost": 0, "duplicated": 0}
    assert held >= SLOW
    tell(
        "server_slow_disk",
        "the disk of the scoring server slow: half a second more for each fsync",
        TEST,
        {"while requests were asked": SLOW},
        f"{len(asker.answers)} answers, none refused, with the scores of an undisturbed run; "
        f"{held} fsyncs were held up, every vector is logged",
        counts,
    )


def test_a_killed_server_answers_the_same_again_and_tears_nothing(
    redis: RedisServer, tmp_path: Path
) -> None:
    dice, recovered, lives = random.Random(18), list[float](), list[list[Answer]]()
    killed = 0.0
    settings, spec, environ = shop(tmp_path, redis.url)
    with Asker(settings.server_url) as asker:
        for _ in range(KILLS):
            left = len(logged(settings, spec))
            with begun(environ) as process:
                answered = asker.answered("none")
                if lives:
                    recovered.append(answered - killed)
                # its first commit may take a while among others that want the core
                until(lambda left=left: len(logged(settings, spec)) > left)
                time.sleep(dice.uniform(0.2, 1.5))
                process.kill()
            killed, before = time.monotonic(), sum(map(len, lives))
            time.sleep(0.1)  # an answer that it had sent has arrived
            lives.append(asker.answers[before:])
        with serving(environ):
            recovered.append(asker.answered("none") - killed)
            asker.rest()
    rows = logged(settings, spec)
    lives.append(asker.answers[sum(map(len, lives)) :])
    right(asker.answers, rows)
    counts = counted(asker.answers, rows)
    assert counts["duplicated"] == 0
    held = {row["request_id"] for row in rows}
    whole: Callable[[Answer], bool] = lambda one: one.request_id in held  # noqa: E731
    for life in lives:  # what is missing are its last answers, less than a commit's worth
        gone = list(itertools.dropwhile(whole, life))
        assert not any(map(whole, gone))
        assert len(gone) < len(life)
    assert all(map(whole, lives[-1]))
    tell(
        "server_kills",
        "the scoring server killed by SIGKILL while it answers",
        TEST,
        {"with answers in that life": KILLS},
        f"{len(asker.answers)} answers with the scores of an undisturbed run; lost are vectors "
        "not yet logged, the last answers of a life, whose impressions end as `unserved`",
        counts,
        recovered,
    )
