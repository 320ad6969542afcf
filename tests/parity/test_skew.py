"""Skew planted in a life with the real store, SQLite online and Feast's history: each is named.

One line lives through 14 ticks of 20 s. The store's pushes are tampered with at some of them, a
server's formula at another, and one part is altered in the end. Every request is known by its
name, and all rows of all requests are checked through Feast's point-in-time join.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from headrace import cli, parity, requests
from headrace.events import TIME, event_schema, served_schema
from headrace.ingest.tick import TickState, run_tick
from headrace.log.files import FileLog
from headrace.parity import ParityReport
from headrace.settings import Settings, find_line, load_settings
from headrace.store import Store
from headrace.windows import WindowState

LINE = """
line: proof
columns: {user_id: string, item: int, price: float}
source: {kind: live}
label: {engagement: click, attribution_window: 5m}
windows:
  - {name: shows, key: [item], event: impression, aggregate: count, window: 10m}
  - {name: clicks, key: [item], event: click, aggregate: count, window: 10m}
  - {name: last_user, key: [item], event: impression, aggregate: last, column: user_id, window: 10m}
  - {name: user_shows, key: [user_id], event: impression, aggregate: count, window: 10m}
request_features:
  - {name: thing, kind: hash, of: item}
  - {name: viewer, kind: hash, of: last_user}
  - {name: ctr, kind: ratio, of: [clicks, shows], prior: [1, 9]}
  - {name: price_log, kind: log1p, of: price}
  - {name: user_shows_log, kind: log1p, of: user_shows}
model: {categorical: [thing, viewer], numeric: [ctr, price_log, user_shows_log], table_bits: 8}
"""
T0, SECOND = 1_750_000_000_000_000, 1_000_000
ITEMS, USERS = "proof_by_item", "proof_by_user_id"
BIG = 2**62 + 1


class Life:
    """The line's home, its live tick state, its real store, and a server that reads it."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.spec = settings, find_line(settings, "proof")
        self.home, self.store = settings.line_home("proof"), Store(settings)
        self.store.apply()
        schema = event_schema(self.spec)
        self.events = FileLog(self.home / "log" / "events", schema, writer=True)
        self.served = FileLog(self.home / "log" / "served", served_schema(self.spec), writer=True)
        self.state = TickState(self.spec, self.home)
        self.pushed: list[tuple[int, str, pa.Table]] = []
        self.now = -1

    def tick(self, *items: int, drop: bool = False) -> None:
        """Impressions of the items, a click on item 1, and the tick that reads them."""
        self.now += 1
        at_us = T0 + self.now * 20 * SECOND
        rows = [self._event("impression", f"{self.now}:{i}", item, at_us) for i, item in
                enumerate((1, *items))]  # fmt: skip
        rows.append(self._event("click", f"{self.now}:0", None, at_us))
        schema = event_schema(self.spec)
        plain = pa.schema(
            [(f.name, pa.int64() if f.name.endswith("_at") else f.type) for f in schema]
        )
        self.events.append(pa.Table.from_pylist(rows, schema=plain).cast(schema))
        plan = self.state.plan()
        assert plan is not None
        self.pushed = []
        run_tick(self.state, plan, lambda view, rows: self.pushed.append((self.now, view, rows)))
        if not drop:
            self.push()

    def _event(self, event: str, name: str, item: int | None, at_us: int) -> dict[str, Any]:
        asked = {"user_id": f"u{self.now % 2}", "item": item, "price": None} if item else {}
        given = {"event": event, "impression_id": name, "event_at": at_us, "arrival_at": at_us}
        return given | {"value": int(event == "click")} | asked

    def push(self, pushed: list[tuple[int, str, pa.Table]] | None = None) -> None:
        for _, view, rows in self.pushed if pushed is None else pushed:
            self.store.push(self.spec, view, rows)

    def serve(self, name: str, *items: int, after_s: int = 8) -> None:
        """Answer a request for the items so long after the newest tick's time."""
        at_us, count = T0 + self.now * 20 * SECOND + after_s * SECOND, len(items)
        asked = pa.table(
            {
                "user_id": ["u0"] * count,
                "item": pa.array(items, pa.int64()),
                "price": pa.array([12.34] * count),
                "request_at": pa.array([at_us] * count),
            }
        )
        found = self.store.read_online(self.spec, asked)
        given = {column: asked[column] for column in self.spec.columns}
        given |= {column: found[column] for column in found.column_names}
        given |= {
            "impression_id": pa.array([f"{name}:{item}" for item in items]),
            "request_id": pa.array([name] * count),
            "served_at": pa.array([at_us] * count).cast(TIME),
            "version": pa.array(["v000001"] * count),
            "score": pa.array([0.5] * count),
            "arm": pa.array(["champion"] * count),
            "propensity": pa.array([1.0] * count),
            "fallback": pa.nulls(count, pa.string()),
        }
        schema = served_schema(self.spec)
        self.served.append(pa.table([given[f.name] for f in schema], schema=schema))


def more(rows: pa.Table, name: str) -> pa.Table:
    """The rows with a count that is one too high."""
    place = rows.schema.get_field_index(name)
    return rows.set_column(place, rows.schema.field(place), pc.add(rows[name], 1))


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    root = tmp_path_factory.mktemp("skew")
    (root / "lines").mkdir()
    (root / "lines" / "proof.yaml").write_text(LINE, encoding="utf-8")
    environ = {"HEADRACE_HOME": str(root / "home"), "HEADRACE_LINES_DIR": str(root / "lines")}
    life = Life(load_settings(environ))
    life.tick(2, BIG)
    life.serve("honest", 1, 2, BIG, 99)
    life.tick(2)
    life.serve("honest again", 1, 2)

    life.tick(2, drop=True)  # this tick's push is lost
    life.serve("dropped", 1)
    life.tick()
    life.serve("dropped before", 1, 2)

    life.tick(3, drop=True)  # this one comes 10 s late
    life.serve("delayed", 1)
    life.push()
    life.serve("after the delay", 1, 3, after_s=12)

    older = life.pushed
    life.tick(3)
    life.serve("before the older", 1)
    life.push(older)  # the tick before, once more
    life.serve("older", 1, 3, after_s=9)

    life.tick(4)
    life.serve("right", 4)
    life.push(
        [(tick, view, more(rows, "shows")) for tick, view, rows in life.pushed if view == ITEMS]
    )
    life.serve("raised online", 4)

    with pytest.MonkeyPatch.context() as patch:
        whole = requests.compute

        def rounds(*given: Any) -> requests.Columns:
            inputs = whole(*given)
            single = inputs["price_log"].astype(np.float32).astype(np.float64)
            return inputs | {"price_log": single}

        patch.setattr(requests, "compute", rounds)
        life.tick(5)
        life.serve("rounded", 5)

    with pytest.MonkeyPatch.context() as patch:
        exact = WindowState.values

        def off(self: WindowState, keys: pa.Table, at_us: Any, view: str | None = None) -> pa.Table:
            values = exact(self, keys, at_us, view)
            return more(values, "shows") if view == ITEMS else values

        patch.setattr(WindowState, "values", off)
        life.tick(6)
    life.serve("miscounted", 6)

    life.tick(7)
    life.serve("altered", 7)
    life.served.close()
    part = life.home / "features" / ITEMS / f"b={life.now:08d}.parquet"
    pq.write_table(more(pq.read_table(part, partitioning=None), "shows"), part)
    yield life
    life.events.close()


@pytest.fixture(scope="module")
def report(life: Life) -> ParityReport:
    return parity.check(life.settings, life.spec, shown=None)


@pytest.fixture(scope="module")
def told(report: ParityReport) -> dict[str, set[tuple[str, str]]]:
    """What was said of each request: (feature, cause)."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for one in report.first:
        found[one.request_id].add((one.feature, one.cause))
    return dict(found)


COUNTED = ("shows", "ctr")


@pytest.mark.parametrize(
    ("request_id", "expected"),
    [
        ("dropped", {(f"{ITEMS}__at", "lost_row"), (f"{USERS}__at", "lost_row")}),
        ("dropped before", {(f"{ITEMS}__at", "lost_row"), (f"{USERS}__at", "lost_row")}),
        ("delayed", {(f"{ITEMS}__at", "late_push"), (f"{USERS}__at", "late_push")}),
        ("older", {(f"{ITEMS}__at", "store")}),
        ("raised online", {(name, "store") for name in COUNTED}),
        ("rounded", {("price_log", "formula")}),
        ("miscounted", {(name, "tick") for name in COUNTED}),
        ("altered", {(name, "history") for name in COUNTED}),
    ],
)
def test_each_planted_skew_is_named_with_its_cause(
    told: dict[str, set[tuple[str, str]]], request_id: str, expected: set[tuple[str, str]]
) -> None:
    assert told[request_id] == expected


def test_nothing_is_said_of_honest_requests(
    told: dict[str, set[tuple[str, str]]], report: ParityReport
) -> None:
    assert not {"honest", "honest again", "after the delay", "before the older", "right"} & set(
        told
    )
    assert report.rows == 20
    assert report.mismatches == len(report.first) == sum(report.by_cause.values())


def test_a_mismatch_says_where_it_stands_and_what_each_side_gives(report: ParityReport) -> None:
    one = next(m for m in report.first if m.request_id == "raised online" and m.feature == "shows")
    assert (one.impression_id, one.version, one.offset) == ("raised online:4", "v000001", 16)
    assert (one.served, one.log, one.history) == (2, 1, 1)


def test_feast_s_join_and_the_parts_themselves_say_the_same(
    life: Life, report: ParityReport
) -> None:
    parts = parity.check(life.settings, life.spec, history="parts", shown=None)
    assert parts.first == report.first


def run(life: Life, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """The exit code of `headrace parity --line proof` with these options."""
    settings = life.settings
    monkeypatch.setenv("HEADRACE_HOME", str(settings.home))
    monkeypatch.setenv("HEADRACE_LINES_DIR", str(settings.lines_dir))
    monkeypatch.setattr(sys, "argv", ["headrace", "parity", "--line", "proof", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_verb_exits_with_6_and_its_json_names_every_mismatch(
    life: Life,
    report: ParityReport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(life, monkeypatch, "--json") == 6
    written = capsys.readouterr()
    assert json.loads(written.out) == json.loads(json.dumps(report.to_dict()))
    assert written.err.startswith("headrace: 16 mismatches in 20 rows: ")


def test_the_verb_s_table_names_row_values_and_cause(
    life: Life, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("headrace.cli.proof.out", Console(width=200))
    assert run(life, monkeypatch, "--from-offset", "16") == 6
    shown = capsys.readouterr().out
    assert "proof: 4 served rows, 7 mismatches" in shown
    row = next(line for line in shown.splitlines() if "shows" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["shows", "raised online:4", "raised online", "16", "2", "1", "1", "store"]


def test_the_verb_starts_where_it_is_told(
    life: Life, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    since = datetime.fromtimestamp(T0 / 1e6 + 9 * 20, UTC).isoformat()
    assert run(life, monkeypatch, "--since", since) == 6
    assert "proof: 1 served rows, 2 mismatches" in capsys.readouterr().out
    assert run(life, monkeypatch, "--since", "1h") == 0
    assert "proof: 0 served rows, 0 mismatches" in capsys.readouterr().out
    assert run(life, monkeypatch, "--since", "noon") == 3
    assert "--since 'noon' is neither a duration nor a time" in capsys.readouterr().err
    assert run(life, monkeypatch, "--last", "1", "--since", "1h") == 3
    assert "give one" in capsys.readouterr().err
