"""The scoring server under load: latency, throughput against a bare server, deltas, and shares.

`headrace serve` alone on one core; the load, Redis and this process on the other. A line of 18
windows on four keys and 30 model inputs, 50 candidates a request. Latency is counted from when a
request was due, so that a slow answer is not excused by the ones that it delays.

- Throughput, flat out, takes turns with a bare FastAPI endpoint that calls the same model on
  ready vectors (`bench._bare`); `bench.kserve` compares it with KServe's.
- Each request comes from another user than the thousands before.
- Latency is told at half of the throughput: alone, with a new delta each second, and with the
  windows that the load moves pushed each second (`bench._pushing`), in turns.
- Shares of a request are those of its parts, called one after the other in this process.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pydantic_core import to_json
from redis import Redis

from bench._bare import LINE
from bench._load import Answers, flat_out, paced
from bench._measure import at_least, at_most, equality, not_measured
from bench._process import cpu_of_tree
from bench._pushing import pushing
from bench._redis import REMEDY, installed
from bench._serving import (
    CANDIDATES,
    asked,
    bare_server,
    beside_the_server,
    prepare,
    ready,
    redis,
    server,
)
from bench._versions import following
from headrace import requests
from headrace.declaration import LineSpec
from headrace.events import input_fields
from headrace.line import LineStore
from headrace.line.version import LEARN
from headrace.raw import Candidates
from headrace.serving import payload
from headrace.serving.resident import Resident
from headrace.serving.scored import Scored
from headrace.serving.scorer import wall_clock_us
from headrace.settings import Settings, find_line
from headrace.store import Store
from headrace.store.encode import entity_keys
from headrace.store.latest import columns_of

CONNECTIONS: Final = 4
READ: Final = "features read and computed"
RAW: Final = "the same keys by a raw pipeline"


@dataclass(frozen=True)
class Sizes:
    """Seconds of a spell of load, turns, and the bits of both tables."""

    spell_s: float
    turns: int
    bits: tuple[int, int]


QUICK: Final = Sizes(1.0, 1, (12, 13))
FULL: Final = Sizes(8.0, 5, (20, 24))


def run(*, quick: bool = False) -> dict[str, Any]:
    """Measure, in about three minutes; quick in seconds."""
    if not installed():
        return {"what": "the server under load", "claims": [_absent()], "table": {}}
    sizes = QUICK if quick else FULL
    with (
        beside_the_server(),
        tempfile.TemporaryDirectory() as name,
        redis(Path(name)) as url,
    ):
        return _measure(Path(name), url, sizes)


def _measure(folder: Path, url: str, sizes: Sizes) -> dict[str, Any]:
    small = prepare(folder / "small", url, sizes.bits[0])
    spec = find_line(small, LINE)
    more = int(sizes.spell_s * sizes.turns) + 1
    deltas = [each.version for each in islice(following(small, spec), more)]
    requests_of_all = asked(spec, CANDIDATES)
    ours, bare = cycle(requests_of_all), cycle(ready(small, spec))
    with server(small) as (port, pid), bare_server(small) as bare_port:
        for each, to in ((ours, port), (bare, bare_port)):
            flat_out(to, each, CONNECTIONS, sizes.spell_s / 2)
        most: dict[str, list[float]] = {"headrace": [], "bare": []}
        for _ in range(sizes.turns):
            most["headrace"].append(_good(flat_out(port, ours, CONNECTIONS, sizes.spell_s)).rate)
            most["bare"].append(_good(flat_out(bare_port, bare, CONNECTIONS, sizes.spell_s)).rate)
    with pushing(small) as push, server(small) as (port, pid):
        flat_out(port, ours, CONNECTIONS, sizes.spell_s / 2)
        half = statistics.median(most["headrace"]) / 2
        spells = _in_turns(small, port, ours, half, deltas, push, sizes)
        cost = {
            f"{count} candidates": _cost(port, pid, cycle(asked(spec, count)), sizes)
            for count in (1, CANDIDATES, 200)
        }
    parts = _parts(small, spec, requests_of_all)
    large = prepare(folder / "large", url, sizes.bits[1])
    with server(large) as (port, pid):
        flat_out(port, ours, CONNECTIONS, sizes.spell_s / 2)
        cost[f"{CANDIDATES} candidates, table of 2^{sizes.bits[1]}"] = _cost(port, pid, ours, sizes)
    return _told(most, spells, cost, parts, sizes, half)


def _good(answers: Answers) -> Answers:
    if answers.failed:
        raise RuntimeError(f"{answers.failed} of {len(answers.ms)} requests failed")
    return answers


def _in_turns(  # noqa: PLR0917
    settings: Settings,
    port: int,
    load: Iterator[bytes],
    rate: float,
    deltas: list[str],
    push: Callable[[bool], None],
    sizes: Sizes,
) -> dict[str, list[Answers]]:
    """Spells at a rate: alone, with a new champion each second, with pushes; in turns."""
    lines = LineStore(settings.line_store_url(LINE), LINE)
    waiting = iter(deltas)
    found: dict[str, list[Answers]] = {"alone": [], "deltas": [], "pushes": []}

    def spell(name: str) -> None:
        found[name].append(_good(paced(port, load, rate, CONNECTIONS * 2, sizes.spell_s)))

    for _ in range(sizes.turns):
        spell("alone")
        over = threading.Event()

        def promote(over: threading.Event = over) -> None:
            while not over.wait(1.0):
                lines.advance(lines.champion(), next(waiting), LEARN, "bench")

        each_second = threading.Thread(target=promote)
        each_second.start()
        spell("deltas")
        over.set()
        each_second.join()
        push(True)
        spell("pushes")
        push(False)
    return found


def _cost(port: int, pid: int, load: Iterator[bytes], sizes: Sizes) -> float:
    """CPU ms of the server for a request, at a tenth of what it can take."""
    rate = max(5.0, _good(flat_out(port, load, 1, sizes.spell_s / 4)).rate / 4)
    before = cpu_of_tree(pid)
    told = _good(paced(port, load, rate, CONNECTIONS, sizes.spell_s))
    return 1e3 * (cpu_of_tree(pid) - before) / len(told.ms)


def _parts(settings: Settings, spec: LineSpec, load: list[bytes]) -> dict[str, float]:
    """Median ms of the parts of a request, one after the other; of all but HTTP itself.

    Each turn is another user's request, so that what is in memory are items and kinds.
    """
    store, resident = Store(settings), Resident(spec)
    lines = LineStore(settings.line_store_url(LINE), LINE)
    champion = lines.champion()
    assert champion is not None
    resident.load(*lines.load(champion.version))
    body_type, bodies = (
        payload.score_request(spec),
        [each.partition(b"\r\n\r\n")[2] for each in load],
    )
    names = [field.name for field in input_fields(spec)]
    client, hashes_of = Redis.from_url(str(settings.online_store)), _hashes(settings, spec)

    def parse(body: bytes) -> Candidates:
        said = body_type.model_validate_json(body)
        return payload.candidates_of(spec, said).at(wall_clock_us())

    def read(candidates: Candidates) -> Any:
        return columns_of(spec, candidates, store.look_up(spec, candidates))

    def answer(scored: Scored) -> bytes:
        return to_json(payload.score_answer(scored))

    def meanwhile(candidates: Candidates) -> Any:
        work = requests.Computation(spec, candidates)
        return columns_of(spec, candidates, store.look_up(spec, candidates, work.go_ahead), work)

    def raw_pipeline(hashes: list[tuple[bytes, list[bytes]]]) -> Any:
        with client.pipeline(transaction=False) as pipe:
            for key, fields in hashes:
                pipe.execute_command("HMGET", key, *fields)
            return pipe.execute()

    found: dict[str, list[float]] = {}
    for turn in range(160):
        body, other, third = bodies[3 * turn : 3 * turn + 3]
        candidates, unread = parse(body), parse(other)
        features = read(candidates)
        windows: dict[str, Any] = {each.name: features[each.name] for each in spec.windows}
        inputs = {name: features[name] for name in names}
        scores = resident.model.predict(inputs)
        ids = [f"r:{row}" for row in range(len(scores))]
        scored = Scored("r", champion.version, 0, 0.0, ids, scores, {})
        ways: dict[str, Callable[[], Any]] = {
            "parse": partial(parse, body),
            READ: partial(read, unread),
            "the same as the server does it, computing while Redis answers": partial(
                meanwhile, parse(third)
            ),
            "features computed": partial(requests.compute, spec, candidates, windows),
            RAW: partial(raw_pipeline, hashes_of(unread)),
            "model": partial(resident.model.predict, inputs),
            "answer": partial(answer, scored),
        }
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if turn >= 100:
                found.setdefault(name, []).append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(each) for name, each in found.items()}


def _hashes(
    settings: Settings, spec: LineSpec
) -> Callable[[Candidates], list[tuple[bytes, list[bytes]]]]:
    """What tells keys of the hashes that some candidates need, and their fields."""
    from feast import FeatureStore

    from headrace.store.config import open_config

    feast = FeatureStore(config=open_config(settings))
    online, project = feast.provider.online_store, feast.config.project.encode()
    views = [feast.get_feature_view(name) for name in spec.views]
    fields = [online._generate_hset_keys_for_features(view)[1][:-1] for view in views]

    def of(candidates: Candidates) -> list[tuple[bytes, list[bytes]]]:
        found = []
        for view, each in zip(views, fields, strict=True):
            table = pa.table({name: candidates.columns[name] for name in view.join_keys})
            different = table.group_by(table.column_names).aggregate([])
            found += [(key + project, each) for key in entity_keys(view, different)]
        return found

    return of


def _told(  # noqa: PLR0917
    most: dict[str, list[float]],
    spells: dict[str, list[Answers]],
    cost: dict[str, float],
    parts: dict[str, float],
    sizes: Sizes,
    half: float,
) -> dict[str, Any]:
    p50, p99 = (
        {name: statistics.median(each.percentile(rank) for each in found)
         for name, found in spells.items()}
        for rank in (50, 99)
    )  # fmt: skip
    ratio = statistics.median(
        ours / bare for ours, bare in zip(most["headrace"], most["bare"], strict=True)
    )
    disturbed = statistics.median(
        with_.percentile(99) / alone.percentile(99)
        for with_, alone in zip(spells["deltas"], spells["alone"], strict=True)
    )
    read = parts[READ] - parts["features computed"]
    failed = sum(each.failed for found in spells.values() for each in found)
    claims = [
        at_most(f"{CANDIDATES} candidates at half of the throughput, p50", p50["alone"], "ms", 4),
        at_most("the same, p99", p99["alone"], "ms", 12),
        at_least("throughput over a bare endpoint of the same model", ratio, "x", 0.6),
        at_most("p99 with a delta each second over p99 without", disturbed, "x", 1.5),
        at_most(
            "features read over a raw Redis pipeline of the same keys",
            read / parts[RAW],
            "x",
            2,
        ),
        equality("no request failed", failed == 0),
    ]
    rows = [[f"most requests a second, {name}", f"{statistics.median(rates):.0f}"]
            for name, rates in most.items()]  # fmt: skip
    rows += [[f"ms at {half:.0f}/s, {name}: p50, p99", f"{p50[name]:.2f}, {p99[name]:.2f}"]
             for name in spells]  # fmt: skip
    rows += [[f"CPU ms a request, {name}", f"{value:.2f}"] for name, value in cost.items()]
    rows += [[f"ms of its parts: {name}", f"{value:.2f}"] for name, value in parts.items()]
    return {
        "what": "the scoring server alone on a core, the load on the other",
        "candidates": CANDIDATES,
        "inputs": 30,
        "throughput": most,
        "latency_ms": {"p50": p50, "p99": p99},
        "cpu_ms": cost,
        "parts_ms": parts,
        "table_bits": sizes.bits,
        "claims": claims,
        "table": {"heads": ["", ""], "rows": rows},
    }


def _absent() -> dict[str, Any]:
    return not_measured("the server under load", "redis-server", REMEDY)
