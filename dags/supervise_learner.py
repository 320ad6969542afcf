"""Every minute: does the resident learner do its work? One that does not is started again.

**Guarantee.** Green means that the learner answers, says that it is well and has beaten within a
minute, if need be after a restart, which the log tells. A restart loses nothing: what is learned
follows from the log's offsets, and the cycle learns meanwhile what the learner leaves.

**Schedule.** Each minute; only lines that declare `cadence.learn` have this DAG.

**At 3 a.m.** *Red*: it is not well even after a restart, or it runs under no supervisor of this
home; the log says which, with the learner's last words. Nothing is stale yet: 15 s after its
last beat `incremental_train` takes over by itself.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, DeltaTriggerTimetable, task

from dags.shared.assets import LineAssets
from dags.shared.defaults import tags_of, task_defaults
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_lines, load_settings

log = logging.getLogger(__name__)


@task(execution_timeout=timedelta(minutes=5))
def attend(line: str) -> str:
    """See the learner well, or start it again; returns what was done."""
    from headrace.stack.attend import ailment
    from headrace.stack.attend import attend as look_after

    settings = load_settings()
    spec = find_line(settings, line)
    wrong = ailment(settings, spec)
    done = look_after(settings, spec)
    if done == "restarted":
        log.warning("restarted, since %s", wrong)
    return done


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    with DAG(
        dag_id=f"supervise_learner_{spec.line}",
        doc_md=__doc__,
        schedule=DeltaTriggerTimetable(timedelta(minutes=1)),
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        default_args=task_defaults(first_retry_s=10),
        tags=tags_of(spec),
    ) as dag:
        assets = LineAssets.of(spec)
        attend.override(inlets=[assets.samples, assets.version])(spec.line)
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    if _spec.cadence.learn is not None:
        globals()[f"supervise_learner_{_spec.line}"] = build(_spec)
