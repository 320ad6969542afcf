"""A line with conversions that a real server answers while ticks run: its scores are compared."""

from __future__ import annotations

import itertools
import time
import warnings
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa

from headrace.events import event_schema, served_schema
from headrace.ingest.tick import TickState, run_tick
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter
from headrace.serving.app import create_app
from headrace.serving.oip import grpc_service_pb2 as pb
from headrace.serving.oip.rpc import SERVICE
from headrace.settings import Settings, find_line, load_settings
from headrace.store import Store
from tests.serving import until, untrained

with warnings.catch_warnings():  # Starlette asks for httpx2, which is no dependency of ours
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

LINE = """
line: alike
columns: {user_id: string, item: int, price: float}
source: {kind: live}
label:
  engagement: click
  attribution_window: 5m
  conversion: {engagement: buy, attribution_window: 20m, provisional_after: 3m}
windows:
  - {name: shows, key: [item], event: impression, aggregate: count, window: 10m}
  - {name: clicks, key: [item], event: click, aggregate: count, window: 10m}
  - {name: last_user, key: [item], event: impression, aggregate: last, column: user_id, window: 10m}
  - {name: shown_at, key: [item], event: impression, aggregate: last_at, window: 10m}
  - {name: user_shows, key: [user_id], event: impression, aggregate: count, window: 10m}
request_features:
  - {name: thing, kind: hash, of: item}
  - {name: viewer, kind: hash, of: last_user}
  - {name: pair, kind: cross, of: [user_id, item]}
  - {name: ctr, kind: ratio, of: [clicks, shows], prior: [1, 9]}
  - {name: age, kind: since, of: shown_at}
  - {name: price_log, kind: log1p, of: price}
  - {name: user_shows_log, kind: log1p, of: user_shows}
model:
  categorical: [thing, viewer, pair]
  numeric: [ctr, age, price_log, user_shows_log]
  table_bits: 8
  embedding_dim: 4
  hidden: [8, 4]
"""
ITEMS = (1, 2, 2**62 + 1, None)
DATATYPES = {"user_id": "BYTES", "item": "INT64", "price": "FP64"}


class AlikeLine:
    """The line's home, its ticks and its published versions."""

    def __init__(self, root: Path) -> None:
        (root / "lines").mkdir(parents=True, exist_ok=True)
        (root / "lines" / "alike.yaml").write_text(LINE, encoding="utf-8")
        self.settings: Settings = load_settings(
            {"HEADRACE_HOME": str(root / "home"), "HEADRACE_LINES_DIR": str(root / "lines")}
        )
        self.spec = find_line(self.settings, "alike")
        self.home = self.settings.line_home("alike")
        self.store = Store(self.settings)
        self.store.apply()
        self.lines = LineStore(self.settings.line_store_url("alike"), "alike")
        self.state = TickState(self.spec, self.home)
        self._numbers = itertools.count()

    def publish(self, seed: int) -> str:
        """A version of random weights, so that every input counts."""
        draw = np.random.default_rng(seed)
        state = untrained(self.spec).state()
        for name in ("table", "linear", "dense"):
            drawn = draw.normal(0, 0.3, state[name].shape)
            state[name] = np.abs(drawn).astype(np.float32)
        numbers = len(self.spec.model.numeric)
        state["moments"] = np.stack([np.full(numbers, n) for n in (100.0, 0.5, 40.0)])
        state["classes"] = np.array([20.0, 80.0, 5.0, 95.0])
        return self.lines.publish(
            state, parent=None, from_tick=0, to_tick=1, excluded=[],
            watermark_us=1_750_000_000_000_000 + seed, event_at_us=1, code="test", rows=0,
            metrics={}, feature_service=self.spec.feature_service,
        ).version  # fmt: skip

    def crown(self, version: str) -> None:
        self.lines.advance(self.lines.champion(), version, "promote", "test")

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Put events into the log; those without `event_at` happen now."""
        schema, now_us = event_schema(self.spec), time.time_ns() // 1_000
        blank = dict.fromkeys(schema.names) | {"event_at": now_us, "arrival_at": 0, "value": 1}
        whole = [
            blank | {"event": "impression", "impression_id": f"e{next(self._numbers)}"} | row
            for row in rows
        ]
        writer = EventWriter(self.home / "log" / "events", self.spec)
        writer.append(pa.Table.from_pylist(whole, schema=schema))
        writer.close()

    def tick(self, *, push: bool = True) -> list[tuple[str, pa.Table]]:
        """Run the tick that is due; what it pushes, or has still to."""
        plan = self.state.plan()
        assert plan is not None
        changed: list[tuple[str, pa.Table]] = []
        run_tick(self.state, plan, lambda view, rows: changed.append((view, rows)))
        if push:
            self.push(changed)
        return changed

    def push(self, changed: list[tuple[str, pa.Table]]) -> None:
        for view, rows in changed:
            self.store.push(self.spec, view, rows)

    def traffic(self, seed: int, count: int = 12) -> None:
        """Random impressions, and clicks on some of them."""
        draw = np.random.default_rng(seed)
        shown = [
            {"impression_id": f"{seed}:{i}", **asked(draw)} | {"value": 0} for i in range(count)
        ]
        clicked = [{"event": "click", "impression_id": row["impression_id"]} for row in shown[::3]]
        self.append(shown + clicked)

    def served(self) -> pa.Table:
        log = FileLog(self.home / "log" / "served", served_schema(self.spec))
        return log.read(0, log.head)


def asked(draw: np.random.Generator) -> dict[str, Any]:
    return {
        "user_id": [None, "ann", "zoë"][draw.integers(3)],
        "item": ITEMS[draw.integers(len(ITEMS))],
        "price": None if draw.random() < 0.3 else float(draw.lognormal()),
    }


class Server:
    """The application of the line, asked in all its ways; each names its request."""

    def __init__(self, line: AlikeLine) -> None:
        self._line = line
        self.client = TestClient(create_app(line.settings, line.spec, grpc_port=0))

    def __enter__(self) -> Server:
        self.client.__enter__()
        until(lambda: self.client.get("/v2/health/ready").status_code == 200)
        return self

    def __exit__(self, *ended: Any) -> None:
        self.client.__exit__(*ended)

    def http(self, name: str, rows: list[dict[str, Any]]) -> list[float]:
        body = {"request_id": name, "candidates": rows}
        answer = self.client.post("/v1/score", json=body)
        assert answer.status_code == 200, answer.text
        return [one["click_and_conversion_score"] for one in answer.json()["scores"]]

    def rest(self, name: str, rows: list[dict[str, Any]]) -> list[float]:
        inputs = [
            {"name": column, "datatype": kind, "shape": [len(rows)]}
            | {"data": [row[column] for row in rows]}
            for column, kind in DATATYPES.items()
        ]
        answer = self.client.post("/v2/models/alike/infer", json={"id": name, "inputs": inputs})
        assert answer.status_code == 200, answer.text
        outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
        return list(outputs["click_and_conversion_score"])

    def rpc(self, name: str, rows: list[dict[str, Any]]) -> list[float]:
        """Typed contents cannot say null, so these rows hold none."""
        request = pb.ModelInferRequest(model_name="alike", id=name)
        for column, kind in DATATYPES.items():
            request.inputs.add(name=column, datatype=kind, shape=[len(rows)])
        of = request.inputs
        of[0].contents.bytes_contents.extend(row["user_id"].encode() for row in rows)
        of[1].contents.int64_contents.extend(row["item"] for row in rows)
        of[2].contents.fp64_contents.extend(row["price"] for row in rows)
        with grpc.insecure_channel(f"127.0.0.1:{self.client.app.state.grpc_port}") as channel:
            answer = channel.unary_unary(
                f"/{SERVICE}/ModelInfer",
                pb.ModelInferRequest.SerializeToString,
                pb.ModelInferResponse.FromString,
            )(request, timeout=30)
        place = [one.name for one in answer.outputs].index("click_and_conversion_score")
        return (
            list(answer.outputs[place].contents.fp64_contents)
            or np.frombuffer(answer.raw_output_contents[place], "<f8").tolist()
        )

    def logged(self, rows: int) -> pa.Table:
        """The served log, once it holds so many rows."""
        until(lambda: self._line.served().num_rows >= rows)
        return self._line.served()
