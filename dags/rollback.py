"""By hand: serve an earlier version again.

**Guarantee.** The champion moves by compare-and-swap, as a new generation with the reason in its
history; nothing is deleted, so a rollback can be rolled forward by naming the newer version.
The server follows within a second. `incremental_train` continues from the version named here;
what was learned since is quarantined, and `headrace quarantine release` lets it be learned again.

**Schedule.** None. *Version* empty: the one that served before the present one. Where the line
declares `rollback: {approval: true}`, or *Choose* is ticked, `approve` waits for a person, who
may take another of the newest champions. A run that waits keeps no other from running.

**At 3 a.m.** *Red*: the version does not exist (`headrace line list`), there is no earlier one,
nobody answered, or a training promoted at the same moment: press it again. The log says which.
In a hurry: `headrace line rollback` asks nobody.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, Param, task

from dags.shared.approval import ApproveVersion
from dags.shared.assets import LineAssets
from dags.shared.defaults import tags_of, task_defaults
from headrace.declaration import LineSpec
from headrace.settings import find_line, load_lines, load_settings


@task(retries=0)
def propose(line: str, params: dict[str, Any]) -> str:
    """The version that is asked for, whatever serves when somebody agrees to it."""
    from headrace.line import LineStore

    store = LineStore(load_settings().line_store_url(line), line)
    return str(store.rollback_target(params["version"] or None)[1])


@task(retries=0)
def move_champion(line: str, params: dict[str, Any], answer: dict[str, Any]) -> str:
    """Move the champion back; returns the version that serves now."""
    from headrace.promote import roll_back

    settings = load_settings()
    version, reason = answer["params_input"]["version"], params["reason"] or "by hand"
    champion = roll_back(settings, find_line(settings, line), version, reason)
    return champion.version


def build(spec: LineSpec) -> DAG:
    """The DAG of one line."""
    text = {"type": ["null", "string"]}
    with DAG(
        dag_id=f"rollback_{spec.line}",
        doc_md=__doc__,
        schedule=None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=16,
        params={
            "version": Param(None, pattern="^(v[0-9]{6,})?$", title="Version", **text),
            "choose": Param(False, type="boolean", title="Choose", description="From a list"),
            "reason": Param(None, title="Reason", **text),
        },
        default_args=task_defaults(),
        tags=tags_of(spec),
    ) as dag:
        assets, asked = LineAssets.of(spec), propose(spec.line)
        approve = ApproveVersion(spec=spec, proposed=asked, task_id="approve", retries=0)
        moved = move_champion.override(inlets=[assets.version], outlets=[assets.served])
        moved(spec.line, answer=approve.output)
    return dag


for _spec in load_lines(load_settings().lines_dir).values():
    globals()[f"rollback_{_spec.line}"] = build(_spec)
