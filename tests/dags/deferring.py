"""Run by test_kubeflow.py in an interpreter of its own, because it imports Airflow: what the
operator and its trigger do with a cluster. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import airflow.sdk  # noqa: F401 - before its parts
from airflow.sdk.exceptions import TaskDeferred

from dags.shared.arriving import SamplesWait
from dags.shared.kubeflow import RunPipeline
from dags.shared.waiting import RunEnded
from headrace.arrivals import Arrivals
from headrace.errors import InputError
from tests.kfp_server import RUN_ID, TOKEN, Cluster, serving


class Store(dict[str, Any]):
    """The store of a task's state."""

    set = dict.__setitem__

    def delete(self, key: str) -> None:
        self.pop(key, None)


def operator() -> RunPipeline:
    longest = timedelta(seconds=30)
    return RunPipeline(
        task_id="run_pipeline", line="coupons", pipeline="incremental_train", longest=longest
    )


def attempt(store: Store) -> dict[str, Any]:
    """One attempt of the task: submit, defer, wait by the trigger's stored form, conclude."""
    context = {"task_state_store": store}
    try:
        operator().execute(context)
    except TaskDeferred as deferred:
        path, kept = deferred.trigger.serialize()
    except Exception as problem:  # noqa: BLE001 - its name is what is looked at
        return {"ended": f"{type(problem).__name__}: {problem}"}
    trigger = RunEnded(**kept)  # another process makes it anew, of what the database holds
    event = asyncio.run(fired(trigger))
    try:
        ended = operator().conclude(context, json.loads(json.dumps(event)))
    except Exception as problem:  # noqa: BLE001
        ended = f"{type(problem).__name__}: {problem}"
    return {"ended": ended, "trigger": path, "kept": sorted(kept), "secret": TOKEN in str(kept)}


async def fired(trigger: RunEnded) -> dict[str, Any]:
    async for event in trigger.run():
        return dict(event.payload)
    raise AssertionError("the trigger ended without an event")


def green(_remote: Cluster) -> dict[str, Any]:
    store = Store()
    return attempt(store) | {"store": sorted(store)}


def failed(remote: Cluster) -> dict[str, Any]:
    """A run that fails is tried again as a new run."""
    store, remote.states = Store(), ["FAILED"]
    first = attempt(store)
    left, remote.states = sorted(store), ["SUCCEEDED"]
    time.sleep(0.001)
    return {"first": first["ended"], "left": left, "second": attempt(store)["ended"]}


def cancelled(remote: Cluster) -> dict[str, Any]:
    remote.states = ["CANCELED"]
    return attempt(Store())


def died(remote: Cluster) -> dict[str, Any]:
    """The worker died after it had submitted, once before and once after it kept the id."""
    remote.states, store = ["RUNNING"], Store()
    for lost in ((), ("kubeflow_run_id",)):
        for key in lost:
            store.delete(key)
        try:
            operator().execute({"task_state_store": store})
        except TaskDeferred:
            continue
    remote.states = ["RUNNING", "SUCCEEDED"]
    return attempt(store)


def dead(remote: Cluster) -> dict[str, Any]:
    """The endpoint is away, and comes back for the retry."""
    store = Store()
    os.environ["HEADRACE_KFP_ENDPOINT"] = "http://127.0.0.1:9"
    first = attempt(store)["ended"]
    os.environ["HEADRACE_KFP_ENDPOINT"] = remote.url
    return {"first": first, "second": attempt(store)["ended"]}


def killed(remote: Cluster) -> dict[str, Any]:
    remote.states, task = ["RUNNING"], operator()
    try:
        task.execute({"task_state_store": Store()})
    except TaskDeferred as deferred:
        asyncio.run(deferred.trigger.on_kill())
    task.on_kill()
    return {"terminated": remote.terminated}


def watched() -> dict[str, Any]:
    """The level of waiting samples as the watcher tells it: above, still above, below, above."""
    levels = iter([4, 5, 6, 7, 2, 9, None])
    SamplesWait.__init__.__globals__["POLL_S"] = 0.0
    told: list[Any] = []

    def waiting(_self: Arrivals) -> int:
        level = next(levels)
        if level is None:
            raise KeyboardInterrupt
        if level == 7:
            raise InputError("a torn manifest")
        return level

    async def watch() -> None:
        path, kept = SamplesWait("coupons", 5).serialize()
        told.append([path, kept])
        async for event in SamplesWait(**kept).run():
            told.append(event.payload["samples"])

    Arrivals.waiting = waiting  # type: ignore[method-assign]
    try:
        asyncio.run(watch())
    except KeyboardInterrupt:
        return {"told": told}
    raise AssertionError("the watcher ended")


def main(home: str) -> None:
    told = {}
    scenarios: list[Callable[[Cluster], dict[str, Any]]] = [
        green, failed, cancelled, died, dead, killed,
    ]  # fmt: skip
    for scenario in scenarios:
        with serving() as remote:
            given = {"HOME": home, "KFP_ENDPOINT": remote.url, "KFP_TOKEN": TOKEN}
            os.environ.update({f"HEADRACE_{name}": value for name, value in given.items()})
            told[scenario.__name__] = scenario(remote) | {"created": len(remote.created)}
    told["watched"] = watched()
    sys.stdout.write("ANSWER" + json.dumps(told | {"run_id": RUN_ID}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
