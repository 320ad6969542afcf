"""Airflow on PostgreSQL in the middle of a cycle: worker, scheduler and database are killed.

What was cut short is tried again, and the champion has the bytes of an undisturbed training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import numpy as np
import psutil
import psycopg
import pytest

from headrace import train
from headrace.account import account
from headrace.line import LineStore
from headrace.settings import Settings, find_line
from headrace.simulate.world import SimulatorConfig, history
from headrace.stack import AirflowClient, running, status
from headrace.store import Store
from tests import postgres
from tests.airflow_stack import Campaign, airflow_alone, made, until
from tests.faults.told import tell
from tests.postgres import Postgres

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(1800)]

TEST = "tests/dags/test_killed.py"


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres.running() as server:
        yield server


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory, database: Postgres) -> Iterator[Campaign]:
    """A line with a first champion; Airflow and Feast's registry are in PostgreSQL."""
    settings = made(
        tmp_path_factory.mktemp("killed"),
        HEADRACE_AIRFLOW_DATABASE=database.create("airflow"),
        HEADRACE_REGISTRY=database.create("feast"),
    )
    spec = find_line(settings, "tickets")
    Store(settings).apply()
    events = history(
        spec, SimulatorConfig(seed=spec.seed, history_s=1_800), time.time_ns() // 1_000
    )
    stack = running(settings, "coupons", service_list=airflow_alone)
    with stack, AirflowClient(settings) as airflow:
        airflow.wait_for_dags({f"{verb}_tickets" for verb in ("full_train", "incremental_train")})
        one = Campaign(settings, spec, airflow, events)
        one.go_on(0.35)
        assert one.ended("full_train", one.run("full_train"))[0] == "success"
        yield one


def process(settings: Settings, name: str) -> psutil.Process:
    services = status(settings, service_list=airflow_alone)["services"]
    (pid,) = (one["pid"] for one in services if one["name"] == name)
    return psutil.Process(pid)


def worker(settings: Settings) -> psutil.Process:
    """The process of Airflow's task that runs a step of an incremental training now.

    At the turn of an hour or a day the schedule runs pipelines of other kinds beside it.
    """

    def steps() -> list[psutil.Process]:
        found = []
        for one in process(settings, "airflow-scheduler").children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                command = one.cmdline()
                if "kfp.dsl.executor_main" in command and "incremental-train" in " ".join(command):
                    found.append(one)
        return found

    step: psutil.Process = until(steps)[0]
    return step.parents()[1]


def struck(campaign: Campaign, strike: Callable[[], None]) -> tuple[float, int]:
    """A cycle over the next part of the campaign, struck in the middle of its pipeline.

    Returns the seconds from the end of the fault to the green run, and how often its pipeline
    was tried again. The champion is compared with an undisturbed training.
    """
    before, seen = campaign.champion, campaign.checked_at
    campaign.go_on(campaign.share + 0.05)
    run = campaign.run("incremental_train")
    until(lambda: campaign.checked_at > seen)
    strike()
    mended = time.monotonic()
    while campaign.goes_on("incremental_train", run):
        campaign.go_on(campaign.share + 0.005)  # rows that judge, whenever the window ended
        time.sleep(4)
    took_s = time.monotonic() - mended
    state, tasks = campaign.ended("incremental_train", run)
    assert state == "success", (tasks, campaign.log("incremental_train", run, "report_outcome"))
    champion = campaign.champion
    assert (champion.previous, champion.action) == (before.version, "promote")
    assert champion.generation == before.generation + 1
    store = LineStore(campaign.settings.line_store_url("tickets"), "tickets")
    version, arrays = store.load(champion.version)
    again = train.incremental(
        campaign.settings, campaign.spec, version.from_tick, version.to_tick, version.parent
    )
    undisturbed = store.load(again)[1]
    assert arrays.keys() == undisturbed.keys()
    assert all(np.array_equal(arrays[name], undisturbed[name]) for name in arrays)
    return took_s, campaign.tries("incremental_train", run, "run_pipeline") - 1


def told(campaign: Campaign, name: str, what: str, took_s: float, again: int) -> None:
    counts = account(campaign.settings, campaign.spec)
    assert (counts["lost"], counts["duplicated"]) == (0, 0)
    tell(
        name,
        what,
        TEST,
        {"in the middle of a pipeline": 1},
        "the run is green, its champion bit for bit that of an undisturbed training, promoted once",
        {name: counts[name] for name in ("lost", "duplicated")},
        [took_s],
        [again],
        "pipelines",
    )


def test_a_killed_worker_is_replaced_and_the_model_has_the_same_bytes(campaign: Campaign) -> None:
    # the step that it ran is orphaned, and ends beside those of the next try
    took_s, again = struck(campaign, lambda: worker(campaign.settings).kill())
    assert again == 1
    what = "a worker of Airflow killed by SIGKILL; recovered is when the run was green"
    told(campaign, "airflow_worker", what, took_s, again)


def stopped_in_a_transaction(scheduler: psutil.Process, database: Postgres) -> bool:
    """Whether the scheduler now stands still in a transaction that locks a run; else it goes on.

    Its workers inherit its connections, so PostgreSQL does not see that it died.
    """
    scheduler.suspend()
    ports = [one.laddr.port for one in scheduler.net_connections("tcp")]
    with psycopg.connect(database.database("airflow").replace("+psycopg", "")) as connection:
        running = "FROM dag_run WHERE state = 'running'"
        (runs,) = connection.execute(f"SELECT count(*) {running}").fetchone() or (0,)
        free = connection.execute(f"SELECT id {running} FOR UPDATE SKIP LOCKED").fetchall()
        (its,) = connection.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE state = 'idle in transaction' AND client_port = ANY(%s)",
            (ports,),
        ).fetchone() or (0,)
    held = len(free) < runs and its > 0
    if not held:
        scheduler.resume()
    return held


def test_a_killed_scheduler_comes_back_and_the_cycle_ends_in_the_same_bytes(
    campaign: Campaign, database: Postgres
) -> None:
    settings = campaign.settings

    def strike() -> None:
        worker(settings)
        scheduler = process(settings, "airflow-scheduler")
        until(partial(stopped_in_a_transaction, scheduler, database), pause_s=0.03)
        scheduler.kill()

    took_s, again = struck(campaign, strike)
    what = (
        "the scheduler of Airflow killed by SIGKILL while it held a lock on the run; recovered is "
        "when the run was green"
    )
    told(campaign, "airflow_scheduler", what, took_s, again)


def test_a_database_that_dies_under_a_cycle_is_waited_for(
    campaign: Campaign, database: Postgres
) -> None:
    def strike() -> None:
        worker(campaign.settings)
        database.kill()
        time.sleep(2)
        database.start()

    took_s, again = struck(campaign, strike)
    what = (
        "PostgreSQL of Airflow and of Feast's registry killed and started again; recovered is "
        "when the run was green"
    )
    told(campaign, "airflow_postgresql", what, took_s, again)
