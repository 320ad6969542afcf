"""Fates and attributions of a log by the words of their definition, in plain Python."""

from __future__ import annotations

from typing import Any

SECOND = 1_000_000  # µs
HORIZON = 15 * SECOND


def oracle(events: list[dict[str, Any]], explicit: bool) -> tuple[dict[int, str], dict[int, int]]:
    """Fates by offset (of events that never see a vector), and engagement by impression."""
    fates: dict[int, str] = {}
    impressions: list[tuple[int, dict[str, Any], int]] = []
    engaged: dict[int, int] = {}
    for offset, row in enumerate(events):
        if row["event"] == "impression":
            if any(
                other["impression_id"] == row["impression_id"] and row["arrival_at"] < close
                for _, other, close in impressions
            ):
                fates[offset] = "duplicate_impression"
            elif row["arrival_at"] - row["event_at"] >= HORIZON:
                fates[offset] = "too_late"
            else:
                close = max(row["arrival_at"], row["event_at"]) + HORIZON
                impressions.append((offset, row, close))
    for offset, row in enumerate(events):
        if row["event"] != "click":
            continue
        mine = [
            (place, other)
            for place, other, close in impressions
            if other["impression_id"] == row["impression_id"]
            and row["arrival_at"] < close
            and other["arrival_at"] < row["arrival_at"] + HORIZON
        ]
        before = [pair for pair in mine if pair[0] < offset]
        if not mine:
            fates[offset] = "unmatched"
            continue
        place, other = before[0] if before else mine[0]
        lag = row["event_at"] - other["event_at"]
        if not 0 <= lag < 10 * SECOND:
            fates[offset] = "too_late"
        elif place in engaged:
            fates[offset] = "duplicate_engagement"
        else:
            engaged[place] = offset
    return fates, engaged
