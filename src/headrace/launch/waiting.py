"""Wait for a run on a cluster without holding a thread or a process: for Airflow's triggerer.

Nothing here raises for what a cluster may do: how the waiting ended is a value, which travels as
JSON to the task that goes on. The same care for the token as in `cluster`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import httpx

from headrace.launch.cluster import ENDED, LOST_S, NO_API, PASSING, POLL_S, clean, shown
from headrace.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOG = logging.getLogger(__name__)
RUNS: Final = "/apis/v2beta1/runs"
_REQUEST_S: Final = httpx.Timeout(15.0, connect=5.0)


@dataclass(frozen=True)
class Heard:
    """How the waiting for a run ended. `why`: what the cluster says of it, or "".

    `how`: `active` (it goes on), `ended` (see `state`), `refused` (the cluster will not say, such
    as for a token that has expired), `lost` (no answer for too long; the run may go on there) or
    `late` (it took too long and was told to end).
    """

    run_id: str
    how: Literal["active", "ended", "refused", "lost", "late"]
    state: str
    why: str = ""

    @property
    def succeeded(self) -> bool:
        return self.how == "ended" and self.state == "SUCCEEDED"

    @property
    def cancelled(self) -> bool:
        """Somebody ended it there, who would not be pleased to see it begin again."""
        return self.how == "ended" and self.state == "CANCELED"


async def wait_there(
    settings: Settings,
    run_id: str,
    *,
    until_s: float,
    poll_s: float = POLL_S,
    lost_s: float = LOST_S,
) -> Heard:
    """Ask for a run every `poll_s` until it has ended, which it is told to at `until_s`.

    `until_s` is a moment, in seconds since 1970, so that a waiting which is taken up elsewhere ends
    no later. A connection that is lost is tried again for `lost_s`.
    """
    heard_s, state = time.monotonic(), "unknown"
    async with _client(settings) as client:
        while True:
            found = await _ask(settings, client, run_id)
            if found.how in ("ended", "refused"):
                return found
            if found.how == "active":
                heard_s, state = time.monotonic(), found.state
            elif time.monotonic() - heard_s >= lost_s:
                return found
            else:
                LOG.warning("run %s: %s; asking again", run_id, found.why)
            if time.time() >= until_s:
                return Heard(run_id, "late", state, await _end(client, run_id))
            await asyncio.sleep(poll_s)


async def look_there(settings: Settings, run_id: str) -> Heard:
    """How a run stands now, by one question; `lost` when that got no answer."""
    async with _client(settings) as client:
        return await _ask(settings, client, run_id)


async def find_there(settings: Settings, name: str) -> str | None:
    """The id of the newest run of that display name; None without one, or where none is told."""
    wanted = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    query = {
        "filter": json.dumps({"predicates": [wanted]}),
        "sort_by": "created_at desc",
        "page_size": "1",
    }
    async with _client(settings) as client:
        try:
            answer = await client.get(RUNS, params=query)
            runs = answer.json().get("runs") or [] if answer.is_success else []
            found = [run["run_id"] for run in runs if run["display_name"] == name]
        except (httpx.HTTPError, ValueError, KeyError, AttributeError) as problem:
            LOG.warning("%s: not looked for (%s)", name, type(problem).__name__)
            return None
    return str(found[0]) if found else None


async def end_there(settings: Settings, run_id: str) -> str:
    """Tell a run to end; returns what came of that, in words."""
    async with _client(settings) as client:
        return await _end(client, run_id)


async def _ask(settings: Settings, client: httpx.AsyncClient, run_id: str) -> Heard:
    try:
        answer = await client.get(f"{RUNS}/{run_id}")
    except httpx.HTTPError as problem:
        return Heard(run_id, "lost", "unknown", f"no answer ({type(problem).__name__})")
    body = _json(answer)
    if answer.is_error:
        said = body.get("message") or body.get("error")
        why = f"{answer.status_code} {answer.reason_phrase}"
        why = clean(settings, f"{why}: {str(said)[:300]}" if said else why)
        return Heard(run_id, "lost" if answer.status_code in PASSING else "refused", "unknown", why)
    if body.get("run_id") != run_id:
        return Heard(run_id, "lost", "unknown", NO_API)
    state = str(body.get("state") or "unknown").upper()
    if state in ENDED:
        return Heard(run_id, "ended", state, clean(settings, "; ".join(_why(body))))
    return Heard(run_id, "active", state)


async def _end(client: httpx.AsyncClient, run_id: str) -> str:
    try:
        answer = await client.post(f"{RUNS}/{run_id}:terminate")
        answer.raise_for_status()
    except httpx.HTTPError as problem:
        LOG.warning("run %s was not told to end: %s", run_id, type(problem).__name__)
        return "could not be told to end"
    return "was told to end"


def _why(run: Mapping[str, Any]) -> Iterator[str]:
    """What the cluster says of a failure: of the run, then of each failed task."""
    if said := (run.get("error") or {}).get("message"):
        yield str(said)
    for task in (run.get("run_details") or {}).get("task_details") or []:
        if said := (task.get("error") or {}).get("message"):
            yield f"{task.get('display_name')}: {said}"


def _json(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


@asynccontextmanager
async def _client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {settings.kfp_token}"} if settings.kfp_token else {}
    base = str(settings.kfp_endpoint).rstrip("/")
    LOG.debug("asking %s", shown(settings))
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=_REQUEST_S) as client:
        yield client
