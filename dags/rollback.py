"""By hand: serve an earlier version again.

**Guarantee.** The champion moves by compare-and-swap, as a new generation with the reason in its
history; nothing is deleted, so a rollback can be rolled forward by naming the newer version.
The server follows within a second. `incremental_train` continues from the version named here;
what was learned since is quarantined, and `headrace quarantine release` lets it be learned again.

**Schedule.** None. *Version* empty: the one that served before the present one.

**At 3 a.m.** *Red*: the version does not exist (`headrace line list`), there is no earlier one,
or a training promoted at the same moment; the log says which. For the last, press it again.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, Param, task

from dags.shared.assets import LineAssets
from dags.shared.defaults import tags_of, task_defaults
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_lines, load_settings

log = logging.getLogger(__name__)


@task(retries=0)
def move_champion(line: str, params: dict[str, Any]) -> str:
    """Move the champion back; returns the version that serves now."""
    from headrace.promote import roll_back

    settings = load_settings()
    version, reason = params["version"] or None, params["reason"] or "by hand"
    champion = roll_back(settings, find_line(settings, line), version, reason)
    log.info("%s serves instead of %s", champion.version, champion.previous)
    return champion.version


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    with DAG(
        dag_id=f"rollback_{spec.line}",
        description=f"Serve an earlier version of {spec.line} again.",
        doc_md=__doc__,
        schedule=None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        params={
            "version": Param(
                None,
                type=["null", "string"],
                pattern="^(v[0-9]{6,})?$",
                title="Version",
                description="Such as v000007; empty for the one that served before",
            ),
            "reason": Param(None, type=["null", "string"], title="Reason"),
        },
        default_args=task_defaults(),
        tags=tags_of(spec),
    ) as dag:
        assets = LineAssets.of(spec.line)
        move_champion.override(inlets=[assets.version], outlets=[assets.served])(spec.line)
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"rollback_{_spec.line}"] = build(_spec)
