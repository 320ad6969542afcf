"""Run a pipeline on the cluster behind `HEADRACE_KFP_ENDPOINT` and wait for its end.

The token and what a proxy may echo of it never reach a message, a log or a chained exception.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from headrace.errors import EnvironmentFault
from headrace.settings import Settings

LOG = logging.getLogger(__name__)
POLL_S: Final = 2.0
LOST_S: Final = 120.0
"""A cluster may be out of reach for so long while a run is awaited: a rollout, a new proxy."""
ENDED: Final = ("SUCCEEDED", "FAILED", "SKIPPED", "ERROR", "CANCELED")
PASSING: Final = (0, 408, 429, 500, 502, 503, 504)
_REQUEST_S: Final = (5.0, 15.0)  # connect, read
NO_API: Final = "the answer is not of the Kubeflow Pipelines API (a sign-in page?)"


@dataclass(frozen=True)
class Ended:
    """A run that is over on the cluster. `why`: what the cluster says of a failure, or ""."""

    run_id: str
    state: str
    why: str


def run_there(
    settings: Settings,
    package: Path,
    arguments: Mapping[str, int | str],
    name: str,
    *,
    timeout_s: float,
    poll_s: float = POLL_S,
    lost_s: float = LOST_S,
) -> Ended:
    """Submit the compiled package and wait for the end of its run.

    A connection that is lost while waiting is tried again for `lost_s`. A run that has not ended
    after `timeout_s`, or whose waiting is interrupted, is told to end. Raises `EnvironmentFault`
    when the endpoint cannot be reached, refuses, or the time is up.
    """
    client, run_id = submit(settings, package, arguments, name)
    try:
        return _await(settings, client, run_id, timeout_s=timeout_s, poll_s=poll_s, lost_s=lost_s)
    except EnvironmentFault:
        raise
    except BaseException:
        _terminate(client, run_id)
        raise


def submit(
    settings: Settings, package: Path, arguments: Mapping[str, int | str], name: str
) -> tuple[Any, str]:
    """Submit the compiled package; returns the client and the run's id.

    Raises `EnvironmentFault` when the endpoint cannot be reached or refuses.
    """
    with talking(settings) as client:
        submitted = client.create_run_from_pipeline_package(
            str(package), arguments=dict(arguments), run_name=name, enable_caching=False
        )
        if not submitted.run_id:
            raise fault(settings, NO_API)
    run_id = str(submitted.run_id)
    LOG.info("%s is run %s: %s/#/runs/details/%s", name, run_id, shown(settings), run_id)
    return client, run_id


@contextmanager
def talking(settings: Settings) -> Iterator[Any]:
    """A `kfp.Client` of the endpoint, which prints nothing inside the block.

    Raises `EnvironmentFault` when the endpoint cannot be reached or refuses, now or in the block.
    """
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        _probe(settings)
        with redirect_stdout(io.StringIO()):  # kfp prints links, which no output of ours may hold
            import kfp

            yield kfp.Client(host=settings.kfp_endpoint, existing_token=settings.kfp_token)
    except (ApiException, HTTPError, TimeoutError) as problem:
        raise fault(settings, _told(problem)) from None


def _probe(settings: Settings) -> None:
    """One cheap question beforehand: kfp.Client would ask five times, 5 s apart, and log them."""
    import kfp_server_api

    configuration = kfp_server_api.Configuration(host=str(settings.kfp_endpoint).rstrip("/"))
    if settings.kfp_token:
        configuration.api_key["authorization"] = settings.kfp_token
        configuration.api_key_prefix["authorization"] = "Bearer"
    health = kfp_server_api.HealthzServiceApi(kfp_server_api.ApiClient(configuration))
    answer = health.healthz_service_get_healthz(_preload_content=False, _request_timeout=_REQUEST_S)
    try:
        spoken = isinstance(json.loads(answer.data), dict)
    except ValueError:
        spoken = False
    if not spoken:
        raise fault(settings, NO_API)


def _await(
    settings: Settings,
    client: Any,
    run_id: str,
    *,
    timeout_s: float,
    poll_s: float,
    lost_s: float,
) -> Ended:
    state = "unknown"
    deadline = time.monotonic() + timeout_s
    heard = time.monotonic()
    while True:
        time.sleep(poll_s)
        run, problem = _ask(settings, client, run_id)
        now = time.monotonic()
        if run is not None:
            heard, state = now, str(run.state or "unknown").upper()
            if state in ENDED:
                return Ended(run_id, state, clean(settings, _why(run)))
        elif now - heard >= lost_s:
            raise fault(
                settings, f"lost for {lost_s:.0f} s ({problem}); run {run_id} may go on there"
            )
        else:
            LOG.warning("run %s: %s; asking again", run_id, clean(settings, problem))
        if now >= deadline:
            told = "was told to end" if _terminate(client, run_id) else "could not be told to end"
            raise fault(
                settings,
                f"run {run_id} is {state} after {timeout_s:.0f} s and {told}; "
                "look at it there, or allow more time",
            )


def _ask(settings: Settings, client: Any, run_id: str) -> tuple[Any, str]:
    """The run as the cluster tells it, or None and what may pass. A refusal raises."""
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        run = client.runs.run_service_get_run(run_id, _request_timeout=_REQUEST_S)
    except HTTPError as problem:
        return None, _told(problem)
    except ApiException as problem:
        if problem.status not in PASSING:
            raise fault(settings, f"run {run_id}: {_told(problem)}") from None
        return None, _told(problem)
    return (run, "") if run.run_id == run_id else (None, NO_API)


def _terminate(client: Any, run_id: str) -> bool:
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        client.runs.run_service_terminate_run(run_id, _request_timeout=_REQUEST_S)
    except (ApiException, HTTPError) as problem:
        LOG.warning("run %s was not told to end: %s", run_id, type(problem).__name__)
        return False
    return True


def _why(run: Any) -> str:
    """What the cluster says of a failure: of the run, then of each failed task."""
    tasks = run.run_details.task_details if run.run_details else None
    said = [run.error.message] if run.error and run.error.message else []
    for task in tasks or []:
        if task.error and task.error.message:
            said.append(f"{task.display_name}: {task.error.message}")
    return "; ".join(said)


def _told(problem: Exception) -> str:
    """A problem in one line, without the headers and the page that may come with it."""
    status = getattr(problem, "status", None)
    if not status:
        reason = getattr(problem, "reason", None) or problem  # of MaxRetryError: what it ended on
        return (
            f"no answer ({str(reason).splitlines()[0] if str(reason) else type(reason).__name__})"
        )
    said = f"{status} {getattr(problem, 'reason', '') or ''}".strip()
    try:
        body = json.loads(getattr(problem, "body", None) or "")
        message = body.get("message") or body.get("error") if isinstance(body, dict) else None
    except ValueError:
        message = None
    return f"{said}: {str(message)[:300]}" if message else said


def fault(settings: Settings, what: str) -> EnvironmentFault:
    """An error that names the endpoint and the settings to look at."""
    remedy = "check HEADRACE_KFP_ENDPOINT and HEADRACE_KFP_TOKEN"
    return EnvironmentFault(f"{shown(settings)}: {clean(settings, what)}; {remedy}")


def clean(settings: Settings, text: str) -> str:
    """The text without the token."""
    return text.replace(settings.kfp_token, "***") if settings.kfp_token else text


def shown(settings: Settings) -> str:
    """The endpoint without a user and password that its URL may hold."""
    url = urlsplit(str(settings.kfp_endpoint))
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
