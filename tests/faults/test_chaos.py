"""`headrace chaos` on a small stack: what it kills comes back, and all events are accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from headrace import chaos
from headrace.errors import EnvironmentFault
from headrace.ingest.tick import resume, run_tick
from headrace.settings import Settings, find_line, load_settings
from headrace.stack import running, status
from tests.campaign import free_port
from tests.dags.test_stack import quiet, two_services
from tests.e2e.test_ingest_kill import prepare

SMALL = partial(status, service_list=two_services)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    names = ("SERVER", "GRPC", "COLLECTOR", "AIRFLOW")
    ports = {f"HEADRACE_{name}_PORT": str(free_port()) for name in names}
    found = load_settings(ports | {"HEADRACE_HOME": str(tmp_path / "home")})
    spec, home = find_line(found, "coupons"), found.line_home("coupons")
    prepare(home, 200)
    state = resume(spec, home)
    plan = state.plan()
    assert plan is not None
    run_tick(state, plan)
    yield found


@pytest.mark.e2e
@pytest.mark.faults
def test_what_is_killed_comes_back_under_another_process(settings: Settings) -> None:
    said: list[str] = []
    with running(settings, "coupons", service_list=two_services, say=quiet):
        before = {one["name"]: one["pid"] for one in SMALL(settings)["services"]}
        told = chaos.run(settings, "coupons", 4, seed=1, apart_s=0.2, status=SMALL, say=said.append)
        after = {one["name"]: one["pid"] for one in SMALL(settings)["services"]}
    assert told["kills"] == sum(told["stages"].values()) == len(said) == 4
    assert set(told["stages"]) == {"ingest", "serve"}
    assert all(before[name] != after[name] for name in before)
    assert (told["lost"], told["duplicated"]) == (0, 0)
    assert 0 < told["recovered_s"]["median"] <= told["recovered_s"]["max"]


def test_without_a_stack_nothing_is_killed(settings: Settings) -> None:
    with pytest.raises(EnvironmentFault, match="headrace up"):
        chaos.run(settings, "coupons", 1)
