"""Window features row by row in plain Python: slow, obvious, and without code of the library."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def window_value(feature: Any, events: list[Row], key: Row, at_us: int) -> int:
    asked = [key[part] for part in feature.key]
    if None in asked:
        return 0
    total = 0
    for event in events:
        if event["event"] != feature.event or [event[p] for p in feature.key] != asked:
            continue
        if at_us - feature.window <= event["knowledge_at"] < at_us:
            total += 1 if feature.aggregate == "count" else (event[feature.column] or 0)
    return total


def window_values(windows: Any, events: list[Row], keys: list[Row], at_us: list[int]) -> list[Row]:
    return [
        {feature.name: window_value(feature, events, key, at) for feature in windows}
        for key, at in zip(keys, at_us, strict=True)
    ]
