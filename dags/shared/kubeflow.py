"""Run a pipeline: here in the task's own process, or on a cluster with nobody waiting for it.

On a cluster the task submits and defers; Airflow's triggerer asks for the run from then on. The
run's name is kept before it is submitted and its id after, in the store of the task's state, so a
retry, a worker that died or a scheduler that restarted goes on with the run that is there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from headrace import records
from headrace.settings import Settings, load_settings

if TYPE_CHECKING:
    from headrace.launch.waiting import Heard

NAME: Final = "headrace_run"
RUN_ID: Final = "kubeflow_run_id"


class RunPipeline(BaseOperator):  # type: ignore[misc]
    """Run a compiled pipeline for a line; returns the name of the run.

    `options`: of a pipeline that is no cycle, by name. A failed run is tried again; one that
    somebody cancelled on the cluster is not. Takes at most `longest`, wherever it runs.
    """

    template_fields = ("options",)

    def __init__(
        self,
        *,
        line: str,
        pipeline: str,
        longest: timedelta,
        options: Mapping[str, str] | None = None,
        **given: Any,
    ) -> None:
        super().__init__(execution_timeout=longest, **given)
        self.line, self.pipeline, self.longest = line, pipeline, longest
        self.options = options or {}
        self._run_id: str | None = None

    def execute(self, context: Any) -> str:
        """Run to the end here, or submit and defer."""
        settings = load_settings()
        if settings.kfp_endpoint is None:
            return self._run_here(settings)
        from dags.shared.waiting import RunEnded

        self._run_id = self._attached(settings, context["task_state_store"])
        until_s = time.time() + self.longest.total_seconds()
        raise TaskDeferred(trigger=RunEnded(self._run_id, until_s), method_name="conclude")

    def conclude(self, context: Any, event: dict[str, Any]) -> str:
        """Take note of how the run ended on the cluster."""
        from headrace.errors import HeadraceError
        from headrace.launch.apart import settle_there
        from headrace.launch.waiting import Heard

        heard, store = Heard(**event), context["task_state_store"]
        run = str(store.get(NAME))
        try:
            settle_there(load_settings(), self.pipeline, self.line, run, heard)
        except HeadraceError as problem:
            if _is_over(heard):
                _forget(store)
            kind = AirflowFailException if heard.cancelled else AirflowException
            raise kind(str(problem)) from None
        self.log.info("%s: run %s succeeded", run, heard.run_id)
        return run

    def on_kill(self) -> None:
        """End the run of a task that is killed while it submits; the trigger does it later on."""
        if self._run_id is not None:
            import asyncio

            from headrace.launch.waiting import end_there

            self.log.info(
                "run %s %s", self._run_id, asyncio.run(end_there(load_settings(), self._run_id))
            )

    def _attached(self, settings: Settings, store: Any) -> str:
        """The id of a run that goes on or has succeeded: of an earlier attempt, or a new one."""
        import asyncio

        from headrace.launch.apart import submit_there
        from headrace.launch.waiting import look_there

        run_id = store.get(RUN_ID)
        if run_id is not None:
            heard = asyncio.run(look_there(settings, str(run_id)))
            if not _is_over(heard) or heard.succeeded:
                self.log.info("going on with run %s, which is %s", run_id, heard.state)
                return str(run_id)
            _forget(store)
        run = store.get(NAME)
        if run is None:
            store.set(NAME, run := records.new_run())
        run_id = submit_there(settings, self.pipeline, self.line, str(run), self.options)
        store.set(RUN_ID, run_id)
        return run_id

    def _run_here(self, settings: Settings) -> str:
        from headrace.launch import run_errand, run_pipeline
        from headrace.launch.run import KIND_OF

        if self.pipeline not in KIND_OF:
            return run_errand(settings, self.pipeline, self.line, self.options).run
        result = run_pipeline(
            settings, self.pipeline, self.line, timeout_s=self.longest.total_seconds()
        )
        if result.outcome == "failed":
            raise AirflowException("; ".join(result.reasons))
        return result.run


def _is_over(heard: Heard) -> bool:
    return heard.how in ("ended", "late")


def _forget(store: Any) -> None:
    """The next attempt begins anew, under another name."""
    store.delete(RUN_ID)
    store.delete(NAME)
