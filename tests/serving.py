"""Published versions whose scores differ, and what a server logged: for tests of the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import numpy as np

from headrace.declaration import LineSpec
from headrace.events import served_schema
from headrace.line import LineStore
from headrace.log.files import FileLog
from headrace.model import Model
from headrace.model.delta import State
from headrace.settings import Settings

WATERMARK_US = 1_750_000_000_000_000
LINE = LineSpec.model_validate(
    {
        "line": "tiny",
        "columns": {"user": "string"},
        "source": {"kind": "live"},
        "label": {"engagement": "click", "attribution_window": "1m"},
        "request_features": [{"name": "u", "kind": "hash", "of": "user"}],
        "model": {"categorical": ["u"]},
    }
)


def until(claim: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def untrained(spec: LineSpec) -> Model:
    """The line's model as it is before it learns: its graph is built once for each declaration."""
    model, state = _traced(spec.model_dump_json())
    model.load_state(state)
    return model


@cache
def _traced(declared: str) -> tuple[Model, State]:
    spec = LineSpec.model_validate_json(declared)
    model = Model(spec.model, spec.seed, conversion=spec.converts)
    return model, model.state()


def publish(settings: Settings, spec: LineSpec, bias: float, watermark_us: int) -> str:
    """A version whose dense weights are shifted, so that each version scores differently."""
    state = untrained(spec).state()
    state["classes"] = np.array([10.0 * bias, 10.0])
    version = LineStore(settings.line_store_url(spec.line), spec.line).publish(
        state,
        parent=None,
        from_tick=0,
        to_tick=1,
        excluded=[],
        watermark_us=watermark_us,
        event_at_us=watermark_us,
        feature_service=spec.feature_service,
        code="test",
        rows=0,
        metrics={},
    )
    return version.version


def advance(settings: Settings, spec: LineSpec, version: str) -> None:
    lines = LineStore(settings.line_store_url(spec.line), spec.line)
    lines.advance(lines.champion(), version, "promote", "test")


def served_rows(settings: Settings, spec: LineSpec, request_id: str) -> list[dict[str, object]]:
    log = FileLog(settings.line_home(spec.line) / "log" / "served", served_schema(spec))
    rows = log.read(0, log.head).to_pylist()
    return [row for row in rows if row["request_id"] == request_id]
