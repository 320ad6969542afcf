"""Every hour: was what we served what the log and Feast's history say? Bit for bit, row by row.

**Guarantee.** Green means that every row served since the start of the run's interval recomputes
to the same bits, twice: by the kernel from the event log, and by Feast's point-in-time join.

**Schedule.** Hourly for live lines; lines that are read from files run by hand. *Newest rows* in
the form checks so many instead; a run without an interval checks all. Skipped: nothing served.

**At 3 a.m.** *Red*: training and serving see different numbers. The log counts the mismatches by
first cause; `headrace parity --since 1h` names each row. Promotions are blocked by the gate while
it lasts, the champion serves on. Look for what changed: a formula, a store, a late push.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags.shared.assets import LineAssets
from dags.shared.defaults import tags_of, task_defaults
from dags.shared.lateness import late_after
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_lines, load_settings

log = logging.getLogger(__name__)


@task(execution_timeout=timedelta(minutes=50))
def compare(line: str, params: dict[str, Any], data_interval_start: datetime | None = None) -> None:
    """Recompute the rows; red, with the causes, on any mismatch."""
    from headrace import parity
    from headrace.events import micros

    settings = load_settings()
    spec = find_line(settings, line)
    start = 0
    if params["last"]:
        start = parity.offset_of_last(settings, spec, params["last"])
    elif data_interval_start is not None:
        start = parity.offset_of(settings, spec, micros(data_interval_start))
    report = parity.check(settings, spec, from_offset=start)
    if not report.rows:
        raise AirflowSkipException("nothing was served")
    for one in report.first:
        log.error("%s", one)
    if report.mismatches:
        causes = ", ".join(f"{count} {cause}" for cause, count in report.by_cause.items())
        raise AirflowFailException(f"{report.mismatches} in {report.rows} rows differ: {causes}")
    log.info("%d rows, no mismatch", report.rows)


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    hourly = CronDataIntervalTimetable("0 * * * *", timezone="UTC")
    with DAG(
        dag_id=f"watch_parity_{spec.line}",
        doc_md=__doc__,
        schedule=hourly if spec.source.kind == "live" else None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        deadline=late_after(timedelta(hours=1)),
        default_args=task_defaults(first_retry_s=30),
        params={"last": Param(None, type=["null", "integer"], minimum=1, title="Newest rows")},
        tags=tags_of(spec),
    ) as dag:
        assets = LineAssets.of(spec)
        compare.override(inlets=[assets.features, assets.served])(spec.line)
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"watch_parity_{_spec.line}"] = build(_spec)
