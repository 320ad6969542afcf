"""What the DAGs over an interval of the log have in common: their form, and what it means."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from headrace.declaration import LineSpec
from headrace.settings import load_settings


def daily(spec: LineSpec) -> CronDataIntervalTimetable:
    """Each day in the line's time zone, a run for the day before."""
    return CronDataIntervalTimetable("0 0 * * *", timezone=spec.timezone)


def interval_form() -> dict[str, Param]:
    """*From*, *To* and *Engine*."""
    moment = {"type": ["null", "string"], "format": "date-time"}
    return {
        "from": Param(None, title="From", description="Instead of the run's day", **moment),
        "to": Param(None, title="To", description="The moment after the last one", **moment),
        "engine": Param("local", enum=["local", "spark"], title="Engine"),
    }


def interval_of(
    line: str, params: dict[str, Any], start: datetime | None, end: datetime | None
) -> dict[str, str]:
    """`start` and `end` in ISO 8601: those of the form, else those of the run.

    Skips the run when they are its own and the log holds nothing between them.
    """
    from headrace.launch import holds_events

    first, last = params["from"] or start, params["to"] or end
    if not first or not last:
        raise AirflowFailException("this run has no interval; give From and To in its form")
    asked_for = params["from"] or params["to"]
    if not asked_for and not holds_events(load_settings(), line, str(first), str(last)):
        raise AirflowSkipException(f"no events from {first} to {last}")
    return {"start": str(first), "end": str(last)}
