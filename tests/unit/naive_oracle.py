"""Window features row by row in plain Python: slow, obvious, and without code of the library."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
MISSING = -9223372036854775808


def window_value(feature: Any, events: list[Row], key: Row, at_us: int) -> int | str:
    """The value; a text where the newest value of a text column is asked."""
    asked = [key[part] for part in feature.key]
    inside = [
        event
        for event in events
        if None not in asked
        and event["event"] == feature.event
        and [event[part] for part in feature.key] == asked
        and at_us - feature.window <= event["knowledge_at"] < at_us
    ]
    present = [e[feature.column] for e in inside if e[feature.column] is not None]
    match feature.aggregate:
        case "count":
            return len(inside)
        case "sum":
            return sum(present)
        case "min":
            return min(present, default=MISSING)
        case "max":
            return max(present, default=MISSING)
        case "distinct":
            return len(set(present))
        case "last":
            return present[-feature.rank] if feature.rank <= len(present) else MISSING
        case "last_at":
            return max((event["knowledge_at"] for event in inside), default=MISSING)
    raise AssertionError(feature.aggregate)


def window_values(windows: Any, events: list[Row], keys: list[Row], at_us: list[int]) -> list[Row]:
    return [
        {feature.name: window_value(feature, events, key, at) for feature in windows}
        for key, at in zip(keys, at_us, strict=True)
    ]
