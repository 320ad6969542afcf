"""Ten minutes of everything at once: deltas, a race, a rollback and a Redis that restarts empty.

`python -m bench soak [--minutes 10]`. Requests come at a steady pace throughout. Each answer must
be the one that its logged vector and version give again, bit for bit; nothing may fail; features
may be missing only from the moment Redis dies until its rows are pushed again, and every answer of
that time says `defaults`, as docs/adr/0033 declares; the server's memory stays where it was.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench._bare import LINE
from bench._measure import at_least, at_most, equality, not_measured
from bench._redis import REMEDY, RedisServer, installed
from bench._serving import asked, prepare, push_all, server
from bench._soaked import Answer, Load, Memory, Replayed, replay
from bench._versions import following
from headrace.contest import Contest, make_arm
from headrace.declaration import LineSpec
from headrace.errors import ConflictError
from headrace.line import Champion, LineStore
from headrace.line.version import LEARN
from headrace.settings import Settings, find_line

CANDIDATES: Final = 10
BITS: Final = 14
RATE: Final = 20.0
SETTLE_S: Final = 1.5
"""Features count as back so long after the push: the breaker asks every 250 ms."""
ARMS: Final[dict[str, dict[str, Any]]] = {
    "split": {"mode": "split", "share": 0.3},
    "dark": {"mode": "shadow"},
}


@dataclass
class Story:
    """What was done to the server, in monotonic seconds."""

    deltas: int = 0
    rollbacks: list[tuple[str, str]] = field(default_factory=list)
    raced: tuple[float, float] = (0.0, 0.0)
    away: tuple[float, float] = (0.0, 0.0)


def run(*, quick: bool = False, minutes: float = 10.0) -> dict[str, Any]:
    """Soak; quick in three quarters of a minute."""
    if not installed():
        absent = not_measured("a soak", "redis-server", REMEDY)
        return {"what": "a soak of the server", "claims": [absent]}
    seconds = 45.0 if quick else 60.0 * minutes
    with tempfile.TemporaryDirectory() as name:
        own = RedisServer(Path(name), "bench")
        own.start()
        try:
            settings = prepare(Path(name) / "soak", own.url, BITS)
            return _soak(settings, find_line(settings, LINE), own, seconds)
        finally:
            own.stop()


def _soak(settings: Settings, spec: LineSpec, own: RedisServer, seconds: float) -> dict[str, Any]:
    story = Story()
    with server(settings) as (port, pid), _deltas(settings, spec, story):
        load = Load(port, asked(spec, CANDIDATES), RATE)
        with Memory(pid) as memory, load:
            began = time.monotonic()

            def at(share: float) -> None:
                time.sleep(max(0.0, began + share * seconds - time.monotonic()))

            at(0.2)
            _race(settings, spec, story, at)
            at(0.55)
            _roll_back(settings, story)
            at(0.65)
            _restart(settings, spec, own, story)
            at(1.0)
    replayed = replay(settings, spec, load.answers)
    return _told(load, story, replayed, memory, seconds)


@contextmanager
def _deltas(settings: Settings, spec: LineSpec, story: Story) -> Iterator[None]:
    """A version that learned a little more becomes the champion every other second."""
    lines, over = LineStore(settings.line_store_url(LINE), LINE), threading.Event()
    versions = following(settings, spec)

    def promote(version: str) -> Champion:
        return lines.advance(lines.champion(), version, LEARN, "soak")

    def learn() -> None:
        while not over.wait(2.0):
            _moved(partial(promote, next(versions).version))
            story.deltas += 1

    thread = threading.Thread(target=learn)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _moved(move: Callable[[], Champion]) -> Champion:
    """Where the champion is after the move, made again where deltas and rollback met."""
    while True:
        try:
            return move()
        except ConflictError:
            continue


def _race(settings: Settings, spec: LineSpec, story: Story, at: Callable[[float], None]) -> None:
    """The champion of now races against what comes after it, in the light and in the dark."""
    contest, lines = Contest(settings, spec), LineStore(settings.line_store_url(LINE), LINE)
    champion = lines.champion()
    assert champion is not None
    began = time.monotonic()
    arms = [make_arm(name=n, version=champion.version, **each) for n, each in ARMS.items()]
    contest.start(arms, "user_id", None, "soak")
    at(0.4)
    contest.start([make_arm(name="split", version=champion.version, share=0.5)], None, None, "more")
    at(0.5)
    contest.leave(None, "stop", "soak")
    story.raced = began, time.monotonic()


def _roll_back(settings: Settings, story: Story) -> None:
    lines = LineStore(settings.line_store_url(LINE), LINE)
    back = _moved(partial(lines.rollback, reason="soak"))
    story.rollbacks.append((str(back.previous), back.version))


def _restart(settings: Settings, spec: LineSpec, own: RedisServer, story: Story) -> None:
    """Redis dies, comes back without what it held, and gets its rows from who has them."""
    died = time.monotonic()
    own.stop()
    time.sleep(2.0)
    own.start()
    time.sleep(2.0)  # there again, and empty
    push_all(settings, spec)
    story.away = died, time.monotonic()


def _told(
    load: Load, story: Story, replayed: Replayed, memory: Memory, seconds: float
) -> dict[str, Any]:
    answers = load.answers
    good = [each for each in answers if each.status == 200]
    died, back = story.away
    outside, inside = _by_outage(good, died, back)
    arms = Counter(each.said["arm"] for each in good)
    failed = len(answers) - len(good) + len(load.problems)
    claims = [
        equality("no request failed", failed == 0 and len(good) > 0),
        equality("every answer is in the served log, as it was given",
                 replayed.rows > 0 and not replayed.unlogged and not replayed.misquoted),
        equality("every logged vector gives its score again by the version that answered",
                 replayed.wrong == 0),
        equality("nobody stood in but while Redis was away", set(outside) == {"none"}),
        equality("while it was away every answer said `defaults`", set(inside) == {"defaults"}),
        equality("deltas, a race, a rollback and a restart were in it",
                 story.deltas > 0 and arms["split"] > 0 and len(story.rollbacks) == 1),
        at_most("private memory at the end over that after the start", memory.growth(), "x", 1.05),
        at_least("minutes", seconds / 60, "min", 10),
    ]  # fmt: skip
    ms = sorted(1e3 * (each.came - each.asked) for each in good)
    rows = [
        ["requests, rows replayed", f"{len(good):,}, {replayed.rows:,}"],
        ["answers by arm", ", ".join(f"{name} {count:,}" for name, count in sorted(arms.items()))],
        ["versions that answered", str(len({each.said["version"] for each in good}))],
        ["deltas, rollbacks", f"{story.deltas}, {len(story.rollbacks)}"],
        ["seconds without features, answers wholly within",
         f"{back - died:.1f}, {sum(inside.values())}"],
        ["ms of a request, p50, p99",
         f"{statistics.median(ms):.1f}, {ms[int(0.99 * len(ms))]:.1f}"],
        ["MiB of private memory, after the start, at the end",
         f"{memory.mib[len(memory.mib) // 5]:.0f}, {memory.mib[-1]:.0f}"],
    ]  # fmt: skip
    return {
        "what": "a soak of the server",
        "seconds": seconds,
        "story": {"deltas": story.deltas, "rollbacks": story.rollbacks, "away_s": back - died},
        "problems": load.problems[:10],
        "memory_mib": [round(each, 1) for each in memory.mib],
        "claims": claims,
        "table": {"heads": ["", ""], "rows": rows},
    }


def _by_outage(good: list[Answer], died: float, back: float) -> tuple[Counter[str], Counter[str]]:
    """Who stood in, of answers outside of the outage, and of those wholly within it.

    At its edges (a request under way when Redis died; the moment until the breaker has seen the
    rows) both are right.
    """
    outside: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for each in good:
        if each.came < died or each.asked > back + SETTLE_S:
            outside[each.said["fallback"]] += 1
        elif each.asked > died + SETTLE_S and each.came < back - SETTLE_S:
            inside[each.said["fallback"]] += 1
    return outside, inside
