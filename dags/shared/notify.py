"""The alarm of a task that failed for good or waits for a person: a log line, and a POST to where
people look.

Where is an Airflow connection named `headrace_alerts` of the type HTTP: scheme, host, port, in
`extra` the `path`, as password a bearer token. Chat systems and pagers take such a hook. Without
that connection the log line is all.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import httpx
from airflow.sdk import BaseNotifier, Connection
from airflow.sdk.exceptions import AirflowNotFoundException

log = logging.getLogger(__name__)

CONNECTION: Final = "headrace_alerts"
PATIENCE_S: Final = 5.0


class Alert(BaseNotifier):  # type: ignore[misc]
    """`on_failure_callback` of every task; what it cannot deliver is logged and ends nothing.

    `reason` is told where it is no failure.
    """

    def __init__(self, reason: str | None = None) -> None:
        super().__init__()
        self.reason = reason

    def notify(self, context: Any) -> None:
        """Tell which task of which run failed or waits, and why."""
        told = message(context) | ({} if self.reason is None else {"reason": self.reason})
        what = "failed" if self.reason is None else "waits"
        log.log(
            logging.ERROR if self.reason is None else logging.INFO,
            "%s: %s of %s, run %s: %s",
            *(what, told["task"], told["dag"], told["run"], told["reason"]),
        )
        try:
            where = Connection.get(CONNECTION)
        except AirflowNotFoundException:
            log.info("no connection %s, nobody else is told", CONNECTION)
            return
        try:
            answer = httpx.post(url(where), json=told, headers=headers(where), timeout=PATIENCE_S)
            answer.raise_for_status()
        except httpx.HTTPError as problem:
            log.error("connection %s: not delivered (%s)", CONNECTION, type(problem).__name__)


def message(context: Any) -> dict[str, Any]:
    """What is posted, of a task's context: names, attempt, reason and the address of its log."""
    instance = context["ti"]
    return {
        "dag": instance.dag_id,
        "run": instance.run_id,
        "task": instance.task_id,
        "attempt": instance.try_number,
        "reason": str(context.get("exception") or "unknown"),
        "log": getattr(instance, "log_url", None),
    }


def headers(where: Any) -> dict[str, str]:
    """The connection's password as a bearer token."""
    return {"Authorization": f"Bearer {where.password}"} if where.password else {}


def url(where: Any) -> str:
    """The address behind a connection."""
    scheme, path = where.schema or "https", where.extra_dejson.get("path", "/")
    port = f":{where.port}" if where.port else ""
    return f"{scheme}://{where.host}{port}/{str(path).removeprefix('/')}"
