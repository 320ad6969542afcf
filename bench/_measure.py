"""What the benchmarks share: the line they measure, its events, clocks and claims."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa

from headrace.declaration import LineSpec, WindowFeature

SEED: Final = 7
US: Final = 1_000_000
DAY_US: Final = 86_400 * US
USERS, ITEMS = 100_000, 20_000
PEERS_GROUP: Final = "install it with `uv sync --group bench`, as `make bench` does"


def six_windows() -> LineSpec:
    """Impressions and clicks by user, item and both: six windows on three keys."""
    windows = [
        {"name": f"{'_'.join(key)}_{event}s_{window}", "key": key, "event": event,
         "aggregate": "count", "window": window}
        for key, windows in ((["user_id"], ("1h", "1d")), (["item_id"], ("1h", "1d")),
                             (["user_id", "item_id"], ("7d", "7d")))
        for event, window in zip(("impression", "click"), windows, strict=True)
    ]  # fmt: skip
    return LineSpec.model_validate(
        {
            "line": "bench",
            "columns": {"user_id": "int", "item_id": "int"},
            "source": {"kind": "live"},
            "label": {"engagement": "click", "attribution_window": "1h", "provisional_after": "1s"},
            "windows": windows,
            "request_features": [{"name": "user", "kind": "hash", "of": "user_id"}],
            "model": {"categorical": ["user"]},
        }
    )


def make_events(rows: int, span_us: int, clicks: float = 0.05) -> pa.Table:
    """Resolved events in order of knowledge: even users, Zipf items, integer ids."""
    rng = np.random.default_rng(SEED)
    return pa.table(
        {
            "knowledge_at": np.sort(rng.integers(0, span_us, rows)),
            "event": np.where(rng.random(rows) < clicks, "click", "impression"),
            "value": np.ones(rows, np.int64),
            "user_id": rng.integers(0, USERS, rows),
            "item_id": rng.zipf(1.2, rows) % ITEMS,
        }
    )


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Result and CPU seconds of one call, all threads of this process together."""
    started = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - started


def frame(feature: WindowFeature) -> str:
    """One window feature as hand-written SQL over integer microseconds."""
    column = "1" if feature.aggregate == "count" else feature.column
    return (
        f"CAST(COALESCE(SUM({column}) FILTER (WHERE event = '{feature.event}') OVER ("
        f"PARTITION BY {', '.join(feature.key)} ORDER BY knowledge_at "
        f"RANGE BETWEEN {feature.window} PRECEDING AND 1 PRECEDING), 0) AS BIGINT) "
        f"AS {feature.name}"
    )


def int_table(spec: LineSpec, columns: Iterable[Any]) -> pa.Table:
    """Window features in declared order under the kernel's own schema."""
    fields = [pa.field(feature.name, pa.int64(), nullable=False) for feature in spec.windows]
    return pa.table(list(columns), schema=pa.schema(fields))


def present(package: str) -> bool:
    """Whether a peer is installed."""
    return importlib.util.find_spec(package) is not None


def at_most(name: str, value: float, unit: str, goal: float) -> dict[str, Any]:
    """Claim that a figure does not exceed its goal."""
    return _claim(name, value, unit, f"<= {goal:g}", value <= goal)


def at_least(name: str, value: float, unit: str, goal: float) -> dict[str, Any]:
    """Claim that a figure reaches its goal."""
    return _claim(name, value, unit, f">= {goal:g}", value >= goal)


def equality(name: str, holds: bool) -> dict[str, Any]:
    """Claim of equal bits."""
    return _claim(name, float(holds), "", 1, holds)


def not_measured(name: str, package: str, remedy: str = PEERS_GROUP) -> dict[str, Any]:
    """Claim that could not be checked, for want of a peer: it does not hold."""
    return _claim(f"{name}: not measured, {package} is absent", 0.0, "x", remedy, False)


def _claim(name: str, value: float, unit: str, goal: Any, holds: bool) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "goal": goal, "holds": bool(holds)}
