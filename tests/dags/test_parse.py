"""The DAG folder parses, reads little, and pulls nothing heavy into the scheduler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
VERBS = (
    *("incremental_train", "full_train", "rollback"),
    *("backfill_features", "batch_score", "watch_parity", "watch_drift", "write_report"),
)
HEAVY = {
    "tensorflow",
    "keras",
    "feast",
    "great_expectations",
    "kfp",
    "pyspark",
    "mlflow",
    "duckdb",
    "pyarrow",
    "pandas",
    "numpy",
}
PARSE = """
import json, sys, importlib.util
from pathlib import Path
import airflow.sdk, airflow.sdk.exceptions, airflow.triggers.base
from airflow.sdk import DAG, Asset, BaseNotifier, Connection, CronDataIntervalTimetable
from airflow.sdk import AssetOrTimeSchedule, AssetWatcher, BaseOperator, CronTriggerTimetable
from airflow.sdk import AsyncCallback, DeadlineAlert, DeltaTriggerTimetable, Param, task
task.short_circuit
before = set(sys.modules)
answer = {"dags": {}, "read": {}, "reached": []}
def hear(event, arguments):
    if event == "open" and Path(str(arguments[0])).parent.name == "lines":
        read.append(Path(arguments[0]).stem)
    if event in ("socket.connect", "sqlite3.connect", "subprocess.Popen"):
        answer["reached"].append([event, str(arguments)])
read = []
sys.addaudithook(hear)
for path in sorted(Path(sys.argv[1]).glob("*.py")):
    answer["read"][path.stem] = read = []
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for dag in vars(module).values():
        if isinstance(dag, DAG):
            answer["dags"][dag.dag_id] = {
                "file": path.stem,
                "tasks": {t.task_id: t.retries for t in dag.tasks},
                "scheduled": dag.timetable.__class__.__name__,
                "at_once": str(getattr(dag.timetable, "run_immediately", None)),
                "max_active_runs": dag.max_active_runs,
                "catchup": dag.catchup,
                "doc": bool(dag.doc_md),
                "tags": sorted(dag.tags),
                "deadline": dag.deadline is not None,
                "pools": {t.task_id: t.pool for t in dag.tasks},
                "alarmed": all(t.on_failure_callback for t in dag.tasks),
                "reads": sorted({a.name for t in dag.tasks for a in t.inlets}),
                "makes": sorted({a.name for t in dag.tasks for a in t.outlets}),
                "watched": sorted(
                    {a.name for t in dag.tasks for a in (*t.inlets, *t.outlets) if a.watchers}
                ),
            }
answer["imported"] = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print("ANSWER" + json.dumps(answer))
"""
REPORT = """
import json, sys
from airflow.sdk.exceptions import AirflowException
from dags.shared import training as module
before = set(sys.modules)
try:
    module.report_outcome.function("coupons", "run-1700000000000000")
    ended = "green"
except AirflowException as problem:
    ended = type(problem).__name__ + ": " + str(problem)
imported = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print("ANSWER" + json.dumps({"ended": ended, "imported": imported}))
"""

POOL = """
import json, os, sys
from airflow.models import import_all_models
from airflow.models.base import Base
from airflow.models.pool import Pool
from airflow.settings import Session, engine
import_all_models()
Base.metadata.create_all(engine, tables=[Base.metadata.tables[n] for n in ("team", "slot_pool")])
from headrace.settings import load_settings
from headrace.stack.airflow_home import set_training_pool
pools = []
for slots in ("1", "3"):
    home = {"HEADRACE_HOME": sys.argv[1], "HEADRACE_TRAINING_SLOTS": slots}
    set_training_pool(load_settings(home))
    with Session() as session:
        (pool,) = Pool.get_pools(session=session)
        pools.append([pool.pool, pool.slots, pool.include_deferred])
print("ANSWER" + json.dumps({"pools": pools}))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return answer(tmp_path_factory.mktemp("airflow"), PARSE, str(PROJECT / "dags"))


def answer(home: Path, script: str, argument: str, **settings: str) -> dict[str, object]:
    """What a script prints in an interpreter that knows Airflow and only these settings."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "HEADRACE"))}
    environ |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", **settings}
    result = subprocess.run(
        [sys.executable, "-c", script, argument],
        env=environ,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    line = next(row for row in result.stdout.splitlines() if row.startswith("ANSWER"))
    printed: dict[str, object] = json.loads(line.removeprefix("ANSWER"))
    return printed


def lines() -> list[str]:
    return sorted(path.stem for path in (PROJECT / "lines").glob("*.yaml"))


def test_every_line_has_its_dags(parsed):
    expected = {f"{verb}_{line}" for verb in VERBS for line in lines()}
    assert expected <= set(parsed["dags"])


def test_search_and_supervision_are_for_the_lines_that_declare_them(parsed):
    files = {dag_id: dag["file"] for dag_id, dag in parsed["dags"].items()}
    assert {dag for dag, file in files.items() if file == "tune"} == {"tune_coupons"}
    assert "supervise_learner" not in files.values()  # no line of ours has a learner by default


@pytest.mark.slow
def test_a_learner_is_supervised_where_the_line_declares_one(tmp_path):
    declared = (PROJECT / "lines" / "coupons.yaml").read_text()
    (tmp_path / "lines").mkdir()
    learning = declared.replace("cadence:\n", "cadence:\n  learn: 2s\n")
    (tmp_path / "lines" / "coupons.yaml").write_text(learning)
    settings = {"HEADRACE_LINES_DIR": str(tmp_path / "lines")}
    dags = answer(tmp_path / "airflow", PARSE, str(PROJECT / "dags"), **settings)["dags"]
    dag = dags["supervise_learner_coupons"]
    assert (dag["scheduled"], dag["tasks"]) == ("DeltaTriggerTimetable", {"attend": 2})


def test_every_file_is_of_a_length_that_can_be_read_at_3_am():
    lengths = {
        path.name: len(path.read_text().splitlines()) for path in (PROJECT / "dags").glob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if not 40 <= lines <= 80} == {}


def test_a_dag_is_named_after_its_file_and_line_and_carries_its_documentation(parsed):
    for dag_id, dag in parsed["dags"].items():
        line = dag_id.removeprefix(dag["file"] + "_")
        assert line in lines()
        assert dag["tags"] == sorted(["headrace", line])
        assert dag["doc"]


def test_one_run_at_a_time_and_no_catching_up(parsed):
    for dag in parsed["dags"].values():
        # a rollback that waits for approval keeps no other from running
        assert dag["max_active_runs"] == (16 if dag["file"] == "rollback" else 1)
        assert dag["catchup"] is False


def test_only_live_lines_are_scheduled(parsed):
    kinds = {dag_id: dag["scheduled"] for dag_id, dag in parsed["dags"].items()}
    assert kinds["incremental_train_coupons"] == "AssetOrTimeSchedule"
    assert kinds["full_train_coupons"] == "CronTriggerTimetable"
    assert kinds["rollback_coupons"] == "NullTimetable"
    assert kinds["watch_parity_coupons"] == "CronDataIntervalTimetable"
    assert kinds["batch_score_coupons"] == "CronDataIntervalTimetable"
    assert kinds["batch_score_news"] == kinds["write_report_news"] == "NullTimetable"
    assert kinds["write_report_coupons"] == "CronDataIntervalTimetable"
    assert kinds["watch_drift_coupons"] == "DeltaTriggerTimetable"
    assert kinds["watch_drift_flights"] == kinds["watch_parity_flights"] == "NullTimetable"
    assert kinds["incremental_train_flights"] == kinds["full_train_news"] == "NullTimetable"


def test_a_line_that_was_just_trained_waits_for_its_first_night(parsed):
    # False would mean: unless the last night was less than two hours and a half ago
    assert parsed["dags"]["full_train_coupons"]["at_once"] == "0:00:00"


def test_a_verdict_is_not_retried_and_the_work_is(parsed):
    tasks = parsed["dags"]["incremental_train_coupons"]["tasks"]
    assert tasks == {"plan": 2, "run_pipeline": 2, "report_outcome": 0}


def test_a_past_interval_of_any_line_can_be_backfilled(parsed):
    kinds = {parsed["dags"][f"backfill_features_{line}"]["scheduled"] for line in lines()}
    assert kinds == {"CronDataIntervalTimetable"}


def test_every_task_that_fails_for_good_tells_somebody(parsed):
    assert all(dag["alarmed"] for dag in parsed["dags"].values())


def test_a_scheduled_run_of_work_that_takes_too_long_is_told(parsed):
    by_hand = {"rollback", "tune", "supervise_learner"}
    told = {dag["file"]: dag["deadline"] for dag in parsed["dags"].values()}
    assert {file for file, late in told.items() if not late} <= by_hand
    assert {file for file, late in told.items() if late} >= {"incremental_train", "full_train"}


def test_assets_lead_from_events_to_what_serves(parsed):
    edges = {
        (read.removeprefix("coupons."), made.removeprefix("coupons."))
        for dag in parsed["dags"].values()
        for read in dag["reads"]
        for made in dag["makes"]
        if read.startswith("coupons.")
    }
    assert edges == {
        ("events", "features"),
        ("samples", "version"),
        ("samples", "served"),
        ("version", "served"),
        *((made_of, "scores") for made_of in ("events", "features", "version")),
    }


def pooled(dags: dict[str, dict[str, dict[str, str]]]) -> dict[str, set[str]]:
    """The files whose tasks wait for a slot of a pool, with those tasks."""
    found: dict[str, set[str]] = {}
    for dag in dags.values():
        tasks = {task for task, pool in dag["pools"].items() if pool != "default_pool"}
        assert {dag["pools"][task] for task in tasks} <= {"headrace_training"}
        if tasks:
            found.setdefault(str(dag["file"]), set()).update(tasks)
    return found


def test_trainings_from_scratch_share_a_pool_and_what_keeps_a_line_fresh_waits_for_none(parsed):
    assert pooled(parsed["dags"]) == {"full_train": {"run_pipeline"}, "tune": {"search"}}


@pytest.mark.slow
def test_on_a_cluster_no_training_waits_for_a_slot_of_this_machine(tmp_path):
    settings = {"HEADRACE_KFP_ENDPOINT": "http://kfp"}
    dags = answer(tmp_path, PARSE, str(PROJECT / "dags"), **settings)["dags"]
    assert pooled(dags) == {}


@pytest.mark.slow
def test_the_stack_makes_the_pool_and_gives_it_its_present_size(tmp_path):
    made = answer(tmp_path / "airflow", POOL, str(tmp_path))["pools"]
    assert made == [["headrace_training", 1, False], ["headrace_training", 3, False]]


def test_samples_are_watched_alike_in_every_file_that_names_them(parsed):
    """Airflow takes a watcher away that another file leaves out."""
    for dag in parsed["dags"].values():
        named = {"coupons.samples"} & {*dag["reads"], *dag["makes"]}
        assert set(dag["watched"]) == named


def test_parsing_imports_nothing_heavy(parsed):
    assert not HEAVY & set(parsed["imported"])


def test_parsing_reads_each_declaration_once_and_reaches_nothing_else(parsed):
    # it is done every minute, and reading the declarations is most of it
    assert parsed["read"] == {path.stem: lines() for path in (PROJECT / "dags").glob("*.py")}
    assert parsed["reached"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("endpoint", "ended"),
    [
        ("", "AirflowFailException: run-1700000000000000 has no record"),
        ("http://kfp", "AirflowSkipException: the record of run-1700000000000000 lies on"),
    ],
)
def test_a_run_without_a_record_is_red_here_and_skipped_on_a_cluster(tmp_path, endpoint, ended):
    settings = {"HEADRACE_HOME": str(tmp_path / "home"), "HEADRACE_KFP_ENDPOINT": endpoint}
    said = answer(tmp_path, REPORT, "", **settings)
    assert said["ended"].startswith(ended)
    assert not HEAVY & set(said["imported"])
