"""Online: pushing and reading through Feast, its way and ours, in SQLite and Redis; and one tick.

Push: rows of one view (one key, four windows and the row's time), as a tick pushes them, by
`FeatureStore.push` of a data frame into Feast's own online store class, and by `Store.push`.
Both leave the same bytes (tests/contract/test_store.py). Read: one request, 20 candidates of one
user, all views of the line; each request asks for other keys, so that none is in memory. The ways
take turns; medians of wall time, in the JSON also CPU
seconds of this process. Redis runs beside it and keeps nothing on disk.

The tick: 10 k events over a state of 200 k events, from the moment that they are handed to the
log until a second `Store` reads the rows that they changed: append, plan, windows, samples,
commit with fsync, push of every view, read. The wait for the cadence is not in it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench._measure import SEED, US, at_least, at_most, not_measured
from bench._redis import REMEDY, RedisServer, installed
from headrace.declaration import LineSpec
from headrace.events import TIME, event_schema, input_fields, served_schema
from headrace.feature_rows import entity_columns, feature_part
from headrace.ingest.plan import Logs
from headrace.ingest.tick import TickState, run_tick
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter, clock_us
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.store import Store

VIEW: Final = "coupons_by_item_id"
CANDIDATES, VISIBLE_S, FASTER = 20, 1.0, 2.0
QUICK = {"rows": 500, "rounds": 2, "reads": 5, "state": 1_000, "tick": 200, "ticks": 2}
FULL = {"rows": 10_000, "rounds": 7, "reads": 100, "state": 200_000, "tick": 10_000, "ticks": 7}

Timed = tuple[list[float], list[float]]  # wall seconds, CPU seconds


def run(*, quick: bool = False) -> dict[str, Any]:
    """Measure pushes, reads and ticks in each store that can run here."""
    sizes = QUICK if quick else FULL
    pushes: dict[str, Timed] = {}
    reads: dict[str, Timed] = {}
    ticks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, _homes(Path(folder)) as homes:
        ways = {
            f"{store}, {who}": way
            for store, settings in homes.items()
            for who, way in _ways(settings, sizes["rows"], sizes["reads"] + 1).items()
        }
        for turn in range(sizes["rounds"] + 1):
            for name, (push, _) in ways.items():
                _take(pushes, name, push, keep=turn > 0)
        for turn in range(sizes["reads"] + 1):
            for name, (_, read) in ways.items():
                _take(reads, name, read, keep=turn > 0)
        for store, settings in homes.items():
            ticks[store] = _ticks(settings, sizes)
    return {
        "what": "online push and read through Feast, and a tick until it is read",
        "rows": sizes["rows"],
        "peers": {"feast": version("feast")},
        "push_s": {name: {"wall": wall, "cpu": cpu} for name, (wall, cpu) in pushes.items()},
        "read_s": {name: {"wall": wall, "cpu": cpu} for name, (wall, cpu) in reads.items()},
        "tick_visible_s": ticks,
        "table": _table(sizes["rows"], pushes, reads, ticks),
        "claims": _claims(sizes, pushes, ticks),
    }


@contextmanager
def _homes(folder: Path) -> Iterator[dict[str, Settings]]:
    """An applied home for each online store that can run here."""
    homes = {"SQLite": _apply(folder / "sqlite")}
    if not installed():
        yield homes
        return
    server = RedisServer(folder, "bench")
    server.start()
    try:
        yield homes | {"Redis": _apply(folder / "redis", HEADRACE_ONLINE_STORE=server.url)}
    finally:
        server.stop()


def _apply(home: Path, **environ: str) -> Settings:
    settings = load_settings(
        {"HEADRACE_HOME": str(home), "HEADRACE_LINES_DIR": str(PROJECT / "lines")} | environ
    )
    Store(settings).apply()
    return settings


Way = tuple[Callable[[], object], Callable[[], object]]


def _ways(settings: Settings, rows: int, reads: int) -> dict[str, Way]:
    """Push and read, by ours and by Feast's own classes; each push brings newer rows."""
    spec, ours, feast = find_line(settings, "coupons"), Store(settings), _stock(settings)
    rng, turns = np.random.default_rng(SEED), {"headrace": 0, "feast": 0}
    service = feast.get_feature_service(spec.feature_service)
    asked = [_asked(spec, turn) for turn in range(reads)]
    sent = [{name: column.to_pylist() for name, column in entity_columns(spec, each).items()}
            for each in asked]  # fmt: skip
    of_ours, of_feast = iter(asked), iter(sent)

    def table(who: str) -> pa.Table:
        turns[who] += 1
        return _rows(spec, rng, rows, 1_750_000_000 * US + turns[who])

    def push_ours() -> None:
        ours.push(spec, VIEW, table("headrace"))

    def push_feast() -> None:
        feast.push(f"{VIEW}_push", feature_part(spec, VIEW, table("feast")).to_pandas())

    return {
        "headrace": (push_ours, lambda: ours.read_online(spec, next(of_ours))),
        "feast": (
            push_feast,
            lambda: feast.get_online_features(service, entity_rows=next(of_feast)).to_dict(),
        ),
    }


def _stock(settings: Settings) -> Any:
    """Feast on the same registry, with its own online store class and a place of its own."""
    from feast import FeatureStore

    from headrace.store.config import open_config

    config = open_config(settings)
    if settings.online_store is None:
        path = str(settings.home / "feast" / "stock.db")
        config.online_config = {"type": "sqlite", "path": path}
    else:
        address = settings.online_store_name.removeprefix("redis://").partition("/")[0]
        string = f"{address},db=4,password=bench"
        config.online_config = {"type": "redis", "connection_string": string}
    stock = FeatureStore(config=config)
    views = stock.list_feature_views()
    stock.provider.online_store.update(config, [], views, [], [], partial=True)
    return stock


def _rows(spec: LineSpec, rng: np.random.Generator, rows: int, at_us: int) -> pa.Table:
    columns = {"item_id": pa.array([f"c{number}" for number in range(rows)])}
    columns["event_timestamp"] = pa.array(np.full(rows, at_us)).cast(TIME)
    for feature in spec.views[VIEW]:
        columns[feature.name] = pa.array(rng.zipf(1.5, rows) % 10_000)
    return pa.table(columns)


def _asked(spec: LineSpec, turn: int) -> pa.Table:
    columns: dict[str, Any] = {
        "user_id": [f"u{turn}"] * CANDIDATES,
        "item_id": [f"c{turn * CANDIDATES + number}" for number in range(CANDIDATES)],
        "category": [f"x{turn}.{number % 5}" for number in range(CANDIDATES)],
        "discount": [0.2] * CANDIDATES,
        "position": list(range(CANDIDATES)),
        "request_at": [clock_us()] * CANDIDATES,
    }
    return pa.table({name: columns[name] for name in (*spec.columns, "request_at")})


def _take(found: dict[str, Timed], name: str, act: Callable[[], object], *, keep: bool) -> None:
    """Time one call; the first of each is to warm up and is not kept."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    if keep:
        walls, cpus = found.setdefault(name, ([], []))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)


def _ticks(settings: Settings, sizes: dict[str, int]) -> list[float]:
    """Seconds from the events' append to the read of their rows, for each tick."""
    spec, writer_store, reader_store = (
        find_line(settings, "coupons"),
        Store(settings),
        Store(settings),
    )
    home, rng = settings.line_home("coupons"), np.random.default_rng(SEED)
    writer = EventWriter(home / "log" / "events", spec)
    served = FileLog(home / "log" / "served", served_schema(spec), writer=True)
    state = TickState(spec, home, Logs(writer, served))

    def tick() -> int:
        plan = state.plan()
        assert plan is not None
        run_tick(state, plan, lambda view, rows: writer_store.push(spec, view, rows))
        return plan.at_us

    seconds = []
    try:
        now_us = clock_us()
        past = np.sort(now_us - rng.integers(2 * US, 600 * US, sizes["state"]))
        writer.append_stamped(_events(spec, rng, past, "past"))
        while state.events_to < writer.head:
            tick()
        for number in range(sizes["ticks"]):
            stamps = np.full(sizes["tick"], clock_us())
            events = _events(spec, rng, stamps, f"tick{number}")
            served.append(_vectors(spec, events))
            question = events.select([*spec.columns]).slice(sizes["tick"] - 1)
            started = time.perf_counter()
            writer.append(events)
            at_us = tick()
            asked = question.append_column("request_at", pa.array([clock_us()]))
            row = reader_store.read_online(spec, asked)
            seconds.append(time.perf_counter() - started)
            found = {row[f"{view}__at"].cast(pa.int64())[0].as_py() for view in spec.views}
            assert found == {at_us}, "the tick's rows are not what was read"
    finally:
        served.close()
        writer.close()
    return seconds


def _events(spec: LineSpec, rng: np.random.Generator, at_us: Any, name: str) -> pa.Table:
    """Impressions, and clicks of a twentieth: 50 k users, 2 k items with few that are hot."""
    size = len(at_us)
    item = rng.zipf(1.3, size) % 2_000
    ids = np.arange(size)
    shown = (rng.random(size) >= 0.05) | (ids == 0) | (ids == size - 1)
    last_shown = np.maximum.accumulate(np.where(shown, ids, 0))  # clicks: of the one before
    columns = {
        "event": np.where(shown, "impression", "click"),
        "impression_id": [f"{name}:{number}" for number in last_shown],
        "request_id": [f"{name}:{number // CANDIDATES}" for number in last_shown],
        "event_at": pa.array(at_us).cast(TIME),
        "arrival_at": pa.array(at_us).cast(TIME),
        "value": (~shown).astype(np.int64),
        "user_id": [f"u{number}" for number in rng.integers(50_000, size=size)],
        "item_id": [f"c{number}" for number in item],
        "category": [f"x{number % 20}" for number in item],
        "discount": rng.random(size),
        "position": ids % CANDIDATES,
    }
    schema = event_schema(spec)
    return pa.table([pa.array(columns[name]) for name in schema.names], schema=schema)


def _vectors(spec: LineSpec, events: pa.Table) -> pa.Table:
    """What a server would have logged for these impressions, with values of no meaning."""
    shown = events.filter(pc.equal(events["event"], "impression"))
    size = shown.num_rows
    numbers = {field.name for field in input_fields(spec)} | {f.name for f in spec.windows}
    columns = []
    for field in served_schema(spec):
        if field.name in shown.column_names:
            columns.append(shown[field.name])
        elif field.name == "version":
            columns.append(pa.array(["v000001"] * size))
        elif field.name == "served_at":
            columns.append(shown["event_at"])
        elif field.name in numbers or field.name == "score":
            columns.append(pa.array(np.ones(size)).cast(field.type))
        else:
            columns.append(pa.nulls(size, field.type))
    return pa.table(columns, schema=served_schema(spec))


def _table(
    rows: int, pushes: dict[str, Timed], reads: dict[str, Timed], ticks: dict[str, list[float]]
) -> dict[str, Any]:
    shown = []
    for name, (wall, cpu) in pushes.items():
        store, who = name.split(", ")
        push_s, read_s = statistics.median(wall), statistics.median(reads[name][0])
        cpu_us = 1e6 * statistics.median(cpu) / rows
        visible = f"{statistics.median(ticks[store]):.2f}" if who == "headrace" else "-"
        row = [name, f"{rows / push_s:,.0f}", f"{cpu_us:.1f}", f"{1e3 * read_s:.1f}", visible]
        shown.append(row)
    heads = ["store, by", "rows pushed a second", "CPU µs a row", "read of 20 candidates, ms"]
    return {"heads": [*heads, "tick until it is read, s"], "rows": shown}


def _claims(
    sizes: dict[str, int], pushes: dict[str, Timed], ticks: dict[str, list[float]]
) -> list[dict[str, Any]]:
    claims = []
    for store in ("SQLite", "Redis"):
        name = f"push of {sizes['rows']:,} rows, Feast's time over ours, {store}"
        if store in ticks:
            ours, feasts = (
                statistics.median(pushes[f"{store}, {who}"][0]) for who in ("headrace", "feast")
            )
            claims.append(at_least(name, feasts / ours, "x", FASTER))
        else:
            claims.append(not_measured(name, "redis-server", REMEDY))
    name = (
        f"tick of {sizes['tick']:,} events until it is read on Redis, slowest of {sizes['ticks']}"
    )
    if "Redis" in ticks:
        claims.append(at_most(name, max(ticks["Redis"]), "s", VISIBLE_S))
    else:
        claims.append(not_measured(name, "redis-server", REMEDY))
    return claims
