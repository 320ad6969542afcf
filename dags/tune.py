"""By hand: search the line's declared space for a better model, and let the best race.

**Guarantee.** What serves does not change. Trials learn the same samples and are measured on the
same later ones; the worse half stops early, twice. The best becomes the challenger `tuned`, in
shadow, only if it beats the model as it is beyond chance. A task that is cleared goes on with
the trials that are done.

**Schedule.** None; only lines that declare `tune` have this DAG.

**At 3 a.m.** Leave it. *Red `search`*: too little history, a space that makes no model, memory or
disk; its log says which. *Skipped `report`*: nothing was better, or the search ran on a
cluster's own storage. A challenger that races is taken out by `headrace race stop --arm tuned`.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.shared.assets import LineAssets
from dags.shared.defaults import heavy, tags_of, task_defaults
from dags.shared.kubeflow import RunPipeline
from headrace import records
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_lines, load_settings

log = logging.getLogger(__name__)


@task
def choose_name() -> dict[str, str]:
    """What the pipeline is asked for: a name, so that a retry goes on with the same search."""
    return {"name": records.new_run()}


@task(retries=0)
def report(line: str, options: dict[str, str]) -> str:
    """Say what was found; returns the version of the challenger."""
    from headrace import tune

    settings = load_settings()
    found = tune.found(settings, find_line(settings, line), options["name"])
    if found is None or found.version is None:
        raise AirflowSkipException(found.reason if found else "the search lies elsewhere")
    log.info("%s races with %s: %s", found.version, found.model, found.reason)
    return found.version


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    with DAG(
        dag_id=f"tune_{spec.line}",
        doc_md=__doc__,
        schedule=None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        default_args=task_defaults(first_retry_s=60),
        params={"reason": Param(None, type=["null", "string"], title="Reason")},
        tags=tags_of(spec),
    ) as dag:
        samples, longest = LineAssets.of(spec).samples, timedelta(hours=12)
        named = choose_name()
        search = RunPipeline(
            task_id="search", line=spec.line, pipeline="tune", longest=longest, options=named,
            inlets=[samples], **heavy(),
        )  # fmt: skip
        search >> report(spec.line, named)
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    if _spec.tune is not None:
        globals()[f"tune_{_spec.line}"] = build(_spec)
