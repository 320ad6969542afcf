"""Nearline scores as a service: a stack whose line asks for them, ended and started again."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.scoring import nearline, pulse
from headrace.settings import Settings
from headrace.stack import Service, running, services, status
from headrace.stack.processes import stack_processes
from tests.campaign import free_port
from tests.contract.scored_line import LINE, AlikeLine
from tests.serving import until


def only_the_follower(settings: Settings, line: str) -> tuple[Service, ...]:
    return tuple(one for one in services(settings, line) if one.name == "score-log")


def quiet(_text: str) -> None:
    return


@pytest.mark.e2e
@pytest.mark.faults
def test_the_stack_scores_the_log_and_goes_on_after_an_end_and_a_kill(tmp_path: Path) -> None:
    line = AlikeLine(tmp_path)
    (tmp_path / "lines" / "alike.yaml").write_text(f"{LINE}nearline: {{every: 100ms}}\n")
    ports = {f"{name}_port": free_port() for name in ("server", "grpc", "collector", "airflow")}
    settings = replace(line.settings, **ports)
    line.crown(line.publish(1))
    folder, told = nearline.scores_folder(line.home, "impressions"), 0

    def moves() -> None:
        nonlocal told
        line.traffic(told, count=12)
        line.tick()
        told += 1
        until(lambda: scored(folder).num_rows == 12 * told, 90)

    for _ in range(2):
        with running(settings, "alike", service_list=only_the_follower, say=quiet):
            found = status(settings, service_list=only_the_follower)["services"]
            assert [(one["name"], one["state"]) for one in found] == [("score-log", "healthy")]
            moves()
            moves()
            os.kill(found[0]["pid"], signal.SIGKILL)
            moves()
        assert not stack_processes(settings.home)
        log = (settings.home / "logs" / "score-log.log").read_text()
        assert log.splitlines()[-1].endswith("rows")  # what SIGTERM lets it say
        assert "Traceback" not in log
    rows = scored(folder)
    assert rows["offset"].to_pylist() == sorted(set(rows["offset"].to_pylist()))
    ids = rows["impression_id"].to_pylist()
    assert len(set(ids)) == len(ids) == 12 * told
    assert json.loads(pulse.beat(line.home, "impressions").read_text())["problem"] is None


def scored(folder: Path) -> pa.Table:
    parts = nearline.parts(folder) if folder.is_dir() else []
    tables = [pq.read_table(part.path) for part in parts]
    return pa.concat_tables(tables) if tables else pa.table({"offset": []})
