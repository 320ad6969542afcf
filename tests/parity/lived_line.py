"""A line that lived through 40 ticks, and what an honest server answered between them.

The online store is a dict that takes what ticks push, so a served row is what a server would have
read and computed at that moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from headrace import requests
from headrace.declaration import LineSpec
from headrace.events import TIME, event_schema, served_schema
from headrace.ingest.tick import TickState, run_tick
from headrace.log.files import FileLog
from headrace.settings import PROJECT, Settings, load_settings

T0 = 1_750_000_000_000_000
SECOND = 1_000_000
USERS = ["ann", "bob", None]
ITEMS = ["i1", "i2", "i3"]


@dataclass
class Online:
    """What a key-value store would hold: the newest row by view and key."""

    rows: dict[tuple[str, tuple[object, ...]], dict[str, object]] = field(default_factory=dict)

    def push(self, spec: LineSpec, view: str, rows: pa.Table) -> None:
        key = spec.views[view][0].key
        for row in rows.to_pylist():
            self.rows[view, tuple(row[part] for part in key)] = row

    def read(self, spec: LineSpec, asked: dict[str, object]) -> dict[str, object]:
        found: dict[str, object] = {}
        for view, features in spec.views.items():
            row = self.rows.get((view, tuple(asked[part] for part in features[0].key)), {})
            found[f"{view}__at"] = row.get("event_timestamp")
            found |= {feature.name: row.get(feature.name, feature.empty) for feature in features}
        return found


def declared() -> LineSpec:
    """The shipped line, with every other aggregate on top."""
    line = yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text(encoding="utf-8"))
    item = {"key": ["item_id"], "window": "2m"}
    line["windows"] += [
        {**item, "name": "item_users", "event": "impression", "aggregate": "distinct"}
        | {"column": "user_id"},
        {**item, "name": "item_user", "event": "click", "aggregate": "last"}
        | {"column": "user_id", "rank": 2},
        {**item, "name": "item_top", "event": "click", "aggregate": "min", "column": "position"},
        {**item, "name": "item_clicked_at", "event": "click", "aggregate": "last_at"},
    ]
    line["request_features"] += [
        {"name": "item_user_id", "kind": "hash", "of": "item_user"},
        {"name": "item_top_number", "kind": "number", "of": "item_top"},
        {"name": "item_click_age", "kind": "since", "of": "item_clicked_at"},
    ]
    return LineSpec.model_validate(line)


def live(spec: LineSpec, root: Path) -> tuple[Settings, pa.Table]:
    """A home with 40 ticks of random traffic, and the rows served between them."""
    settings = load_settings({"HEADRACE_HOME": str(root)})
    home, random = settings.line_home("coupons"), np.random.default_rng(11)
    events = FileLog(home / "log" / "events", event_schema(spec), writer=True)
    FileLog(home / "log" / "served", served_schema(spec), writer=True).close()
    state, online, served = TickState(spec, home), Online(), []
    for tick in range(40):
        now_us = T0 + tick * 20 * SECOND
        events.append(traffic(spec, random, tick, now_us))
        plan = state.plan()
        assert plan is not None
        run_tick(state, plan, lambda view, rows: online.push(spec, view, rows))
        served += [serve(spec, online, random, now_us + 7 * SECOND, tick, i) for i in range(6)]
    return settings, pa.concat_tables(served).combine_chunks()


def traffic(spec: LineSpec, random: np.random.Generator, tick: int, now_us: int) -> pa.Table:
    rows = []
    for i in range(random.integers(3, 12)):
        click = i > 0 and random.random() < 0.4
        first = f"{max(tick - 1, 0)}:0"  # shown again now and then: a duplicate
        shown = f"{tick}:0" if click else f"{tick}:{i}" if i < 9 else first
        rows.append(
            {
                "event": "click" if click else "impression",
                "impression_id": shown,
                "event_at": now_us + i,
                "arrival_at": now_us + i,
                "value": int(click),
                **asked(random),
            }
        )
    return pa.Table.from_pylist(rows, schema=as_int(event_schema(spec))).cast(event_schema(spec))


def asked(random: np.random.Generator) -> dict[str, object]:
    return {
        "user_id": USERS[random.integers(len(USERS))],
        "item_id": ITEMS[random.integers(len(ITEMS))],
        "category": "food",
        "discount": None if random.random() < 0.3 else float(random.random()),
        "position": 1,
    }


def serve(
    spec: LineSpec, online: Online, random: np.random.Generator, now_us: int, tick: int, i: int
) -> pa.Table:
    question = asked(random)
    windows = online.read(spec, question)
    names = [*spec.columns, *(feature.name for feature in spec.windows)]
    table = pa.Table.from_pylist(
        [question | windows], schema=pa.schema([served_schema(spec).field(name) for name in names])
    ).append_column("request_at", pa.array([now_us]))
    inputs = requests.transform(spec, table).to_pylist()[0]
    row = {
        "impression_id": f"s{tick}:{i}",
        "request_id": f"s{tick}",
        "served_at": now_us,
        "version": "v000001",
        "score": 0.5,
        "arm": "champion",
        "propensity": 1.0,
        "fallback": None,
    }
    schema = served_schema(spec)
    at = {name: value for name, value in windows.items() if name.endswith("__at")}
    plain = row | question | {k: v for k, v in windows.items() if k not in at} | inputs
    columns = []
    for one in schema:
        value = at[one.name] if one.name in at else plain[one.name]
        if one.name == "served_at":
            columns.append(pa.array([value], pa.int64()).cast(TIME))
        else:
            columns.append(pa.array([value], one.type))
    return pa.table(columns, schema=schema)


def as_int(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [pa.field(f.name, pa.int64()) if pa.types.is_timestamp(f.type) else f for f in schema]
    )
