"""From JSON to rows of the event log, and to refusals with a reason. No I/O, no clock."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

from headrace.declaration import LineSpec
from headrace.events import IMPRESSION, micros

DAY_US: Final = 86_400_000_000
_INT64: Final = range(-(2**63), 2**63)
_OWN: Final = {"event", "impression_id", "request_id", "event_at", "value"}

Refused = tuple[str, Any]  # reason, the raw event


class Malformed(ValueError):
    """An event that does not fit the line; the message is the reason."""


class TooMany(ValueError):
    """More events than one request may carry."""


class Intake:
    """The checks of one line's events, of at most `most` at once."""

    def __init__(self, spec: LineSpec, most: int = 10_000) -> None:
        self._spec = spec
        self._most = most
        self._columns: dict[str, Callable[[str, object], object]] = {
            name: _CHECKS[kind] for name, kind in spec.columns.items()
        }

    def read(self, body: bytes, now_us: int) -> tuple[list[dict[str, Any]], list[Refused], bool]:
        """Rows for the log (`arrival_at` still open), refused events, and: was the body readable?

        An unreadable body counts as one refused event. `now_us` bounds `event_at`: a day ahead.
        Raises `TooMany`.
        """
        try:
            events = json.loads(body)["events"]
            if not isinstance(events, list):
                raise TypeError("events is not a list")
        except (ValueError, TypeError, KeyError, RecursionError) as problem:
            why = f"body: not JSON of the form {{'events': [...]}} ({problem!r})"
            return [], [(why, body.decode("utf-8", "replace"))], False
        if len(events) > self._most:
            raise TooMany(f"{len(events)} events; send at most {self._most} at once")
        rows: list[dict[str, Any]] = []
        refused: list[Refused] = []
        for event in events:
            try:
                rows.append(self.row(event, now_us))
            except Malformed as problem:
                refused.append((str(problem), event))
        return rows, refused, True

    def read_each(
        self, values: Iterable[str | bytes | None], now_us: int
    ) -> tuple[list[dict[str, Any]], list[Refused]]:
        """The same of messages or lines that hold one JSON event each."""
        rows: list[dict[str, Any]] = []
        refused: list[Refused] = []
        for value in values:
            raw: Any = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            try:
                text = value.decode() if isinstance(value, bytes) else value
                if text is None:
                    raise Malformed("message: has no value")
                rows.append(self.row(json.loads(text), now_us))
            except Malformed as problem:
                refused.append((str(problem), raw))
            except (ValueError, RecursionError) as problem:
                refused.append((f"message: not JSON in UTF-8 ({problem!r})", raw))
        return rows, refused

    def row(self, event: object, now_us: int) -> dict[str, Any]:
        """One event as a row of the event log. Raises `Malformed`."""
        if not isinstance(event, dict):
            raise Malformed("event: not an object")
        unknown = event.keys() - _OWN - self._columns.keys()
        if unknown:
            raise Malformed(f"{sorted(map(repr, unknown))[0]}: not a column of this line")
        name = event.get("event")
        if name not in self._spec.label.events:
            known = " nor ".join(map(repr, self._spec.label.events))
            raise Malformed(f"event: {name!r} is neither {known}")
        row = {
            "event": name,
            "impression_id": _text("impression_id", event.get("impression_id")),
            "request_id": _text("request_id", event.get("request_id")),
            "event_at": _time(event.get("event_at"), now_us),
            "arrival_at": 0,
            "value": self._value(str(name), event.get("value")),
        }
        if not row["impression_id"]:
            raise Malformed("impression_id: missing or empty")
        for column, check in self._columns.items():
            row[column] = check(column, event.get(column))
        return row

    def _value(self, name: str, value: object) -> int:
        if value is None:
            return 0 if name == IMPRESSION else 1
        if isinstance(value, bool) or not isinstance(value, int) or value not in _INT64:
            raise Malformed(f"value: {value!r} is not a 64-bit integer")
        if name != IMPRESSION:
            allowed = (0, 1) if self._spec.label.outcome == "explicit" else (1,)
            if value not in allowed:
                raise Malformed(f"value: {value!r} is not in {allowed}, what {name!r} may say")
        return value


def _time(value: object, now_us: int) -> int:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise Malformed(f"event_at: {value!r} is not an ISO 8601 time") from None
        if moment.tzinfo is None:
            raise Malformed(f"event_at: {value!r} has no zone; add Z or an offset")
        value = micros(moment)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Malformed(f"event_at: {value!r} is neither an ISO 8601 time nor microseconds")
    if value < 0:
        raise Malformed(f"event_at: {value} us lies before 1970")
    if value > now_us + DAY_US:
        raise Malformed(f"event_at: {value} us lies more than 1 day in the future")
    return value


def _text(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise Malformed(f"{name}: {value!r} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Malformed(f"{name}: {value!r} is not valid Unicode") from None
    return value


def _integer(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value not in _INT64:
        raise Malformed(f"{name}: {value!r} is not a 64-bit integer")
    return value


def _float(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{name}: {value!r} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Malformed(f"{name}: {value!r} is not a finite number")
    return number


_CHECKS: Final[dict[str, Callable[[str, object], object]]] = {
    "string": _text,
    "int": _integer,
    "float": _float,
}
