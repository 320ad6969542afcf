"""Who is told when a run takes longer than it should, while it still goes on."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import httpx
from airflow.sdk import Connection
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.exceptions import AirflowNotFoundException

from dags.shared.notify import CONNECTION, PATIENCE_S, headers, url

log = logging.getLogger(__name__)


def late_after(interval: timedelta) -> DeadlineAlert:
    """`deadline` of a DAG: a run that is not over so long after it was queued is told, once."""
    told = AsyncCallback(f"{__name__}.tell_late", {"after_s": interval.total_seconds()})
    return DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, interval, told)


async def tell_late(after_s: float, context: Any = None) -> None:
    """In the triggerer: a log line, and a POST to the connection of the alarms where there is one.

    What it cannot deliver is logged and ends nothing.
    """
    run = (context or {}).get("dag_run") or {}
    told = {
        "dag": run.get("dag_id"),
        "run": run.get("dag_run_id"),
        "task": None,
        "reason": f"not over {after_s:.0f} s after it was queued",
    }
    log.error("late: run %(run)s of %(dag)s: %(reason)s", told)
    try:
        where = await Connection.async_get(CONNECTION)
    except AirflowNotFoundException:
        log.info("no connection %s, nobody else is told", CONNECTION)
        return
    try:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            answer = await client.post(url(where), json=told, headers=headers(where))
        answer.raise_for_status()
    except httpx.HTTPError as problem:
        log.error("connection %s: not delivered (%s)", CONNECTION, type(problem).__name__)
