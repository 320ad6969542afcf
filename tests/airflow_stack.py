"""A stack of Airflow alone for the tests of its DAGs: nothing scores or collects in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import IMPRESSION, TIME
from headrace.ingest.service import import_history
from headrace.line import Champion, LineStore
from headrace.settings import PROJECT, Settings, load_settings
from headrace.simulate.world import SECOND_US
from headrace.stack import AirflowClient, Service, services
from tests.campaign import free_port

TICK_US = 4 * SECOND_US
FLIPPED = (0.6, 0.7)  # of the campaign's length: all that was shown then is clicked


def airflow_alone(settings: Settings, line: str) -> tuple[Service, ...]:
    return tuple(one for one in services(settings, line) if one.name.startswith("airflow"))


def made(root: Path, **environ: str) -> Settings:
    """Settings of a home of its own. The line `coupons` asks before a rollback and watches its
    samples; `tickets`, the same campaign, learns when it is told to.
    """
    declared = yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text())
    declared["rollback"] = {"approval": True, "wait": "10m"}
    declared["cadence"] |= {"incremental": "1h", "on_samples": 100}
    (root / "lines").mkdir()
    (root / "lines" / "coupons.yaml").write_text(yaml.safe_dump(declared))
    declared["line"] = "tickets"  # learns when it is told to
    declared["cadence"].pop("on_samples")
    # its base learns eight minutes: how far the next ones move the scores follows the clock
    declared["gates"]["model"]["max_score_shift"] = 2.0
    declared["tune"] = {"space": {"ftrl_alpha": [0.05, 0.2]}, "trials": 2}
    (root / "lines" / "tickets.yaml").write_text(yaml.safe_dump(declared))
    ports = ("AIRFLOW", "SERVER", "GRPC", "COLLECTOR")
    return load_settings(
        {"HEADRACE_HOME": str(root / "home"), "HEADRACE_LINES_DIR": str(root / "lines")}
        | {f"HEADRACE_{name}_PORT": str(free_port()) for name in ports}
        | environ
    )


def until(found: Callable[[], Any], timeout_s: float = 240.0, pause_s: float = 0.5) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (answer := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause_s)
    return answer


@dataclass
class Campaign:
    """A line whose events come when the test says so."""

    settings: Settings
    spec: LineSpec
    airflow: AirflowClient
    events: pa.Table
    taken: int = 0
    share: float = 0.0

    @property
    def champion(self) -> Champion:
        store = LineStore(self.settings.line_store_url(self.spec.line), self.spec.line)
        champion = store.champion()
        assert champion is not None
        return champion

    @property
    def checked_at(self) -> int:
        """When the data gate last had an answer."""
        gates = self.settings.line_home(self.spec.line) / "gates"
        return max((one.stat().st_mtime_ns for one in gates.glob("data-*")), default=0)

    def go_on(self, until_share: float) -> None:
        """Let events come until that share of the campaign's length."""
        arrival = self.events["arrival_at"].cast(pa.int64()).to_numpy()
        end_us = arrival[0] + until_share * (arrival[-1] - arrival[0])
        stop = int(np.searchsorted(arrival, end_us, "right"))
        piece = self.events.slice(self.taken, stop - self.taken)
        if piece.num_rows:
            import_history(self.settings, self.spec, piece, TICK_US)
        self.taken, self.share = stop, until_share

    def run(self, dag: str) -> str:
        return self.airflow.trigger(f"{dag}_{self.spec.line}")

    def goes_on(self, dag: str, run: str) -> bool:
        """Whether a run has not ended; an API server that is away is asked again."""
        try:
            runs = self.airflow.runs(f"{dag}_{self.spec.line}")
        except (EnvironmentFault, httpx.HTTPError):
            return True
        (state,) = (each["state"] for each in runs if each["dag_run_id"] == run)
        return state not in ("success", "failed")

    def ended(self, dag: str, run: str) -> tuple[str, dict[str, str | None]]:
        """How a run ended, and its tasks."""
        dag_id = f"{dag}_{self.spec.line}"
        return self.airflow.wait(dag_id, run), self.airflow.task_states(dag_id, run)

    def tries(self, dag: str, run: str, task: str) -> int:
        """How often a task of a run was begun."""
        where = f"/api/v2/dags/{dag}_{self.spec.line}/dagRuns/{run}/taskInstances/{task}"
        return int(self.airflow._call("GET", where)["try_number"])

    def log(self, dag: str, run: str, task: str) -> str:
        where = f"/api/v2/dags/{dag}_{self.spec.line}/dagRuns/{run}/taskInstances/{task}/logs/1"
        return str(self.airflow._call("GET", where))


def with_flipped(events: pa.Table) -> pa.Table:
    """A click a second after everything that was shown in that part."""
    arrival = events["arrival_at"].cast(pa.int64()).to_numpy()
    place = (arrival - arrival[0]) / (arrival[-1] - arrival[0])
    inside = (place >= FLIPPED[0]) & (place < FLIPPED[1])
    shown = events.filter(pc.and_(pa.array(inside), pc.equal(events["event"], IMPRESSION)))
    changed: dict[str, Any] = {"event": pa.array(["click"] * shown.num_rows)}
    for name in ("event_at", "arrival_at"):
        changed[name] = pc.add(shown[name].cast(pa.int64()), SECOND_US).cast(TIME)
    for name, column in changed.items():
        at = shown.schema.get_field_index(name)
        shown = shown.set_column(at, shown.schema.field(at), column)
    return pa.concat_tables([events, shown]).sort_by("arrival_at")
