"""What Airflow's triggerer waits for: the end of a run on a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from headrace.launch.waiting import end_there, wait_there
from headrace.settings import load_settings


class RunEnded(BaseTrigger):  # type: ignore[misc]
    """Fires when a run on the cluster has ended, or will say nothing more.

    `until_s` is a moment, not a duration: a triggerer that restarts grants no second helping.
    Endpoint and token come from the environment of the triggerer, never from Airflow's database.
    """

    def __init__(self, run_id: str, until_s: float) -> None:
        super().__init__()
        self.run_id, self.until_s = run_id, until_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What the database keeps of it."""
        kept = {"run_id": self.run_id, "until_s": self.until_s}
        return f"{type(self).__module__}.{type(self).__name__}", kept

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Ask until the run is over; the one event is `waiting.Heard` as a mapping."""
        heard = await wait_there(load_settings(), self.run_id, until_s=self.until_s)
        yield TriggerEvent(asdict(heard))

    async def on_kill(self) -> None:
        """Somebody marked or cleared the waiting task: its run has to end too."""
        self.log.info("run %s %s", self.run_id, await end_there(load_settings(), self.run_id))
