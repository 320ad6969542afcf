"""Records of cycles, and that reading them costs no heavy import."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from headrace import cycle, records
from headrace.errors import InputError
from headrace.settings import find_line, load_settings

IMPORTS = """
import json, sys
import headrace.records, headrace.launch
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
HEAVY = {"numpy", "pandas", "pyarrow", "kfp", "feast", "tensorflow", "fsspec", "safetensors"}


def test_a_record_is_found_by_its_run_with_everything_in_it(tmp_path: Path) -> None:
    settings = load_settings({"HEADRACE_HOME": str(tmp_path)})
    spec = find_line(settings, "coupons")
    began = records.started("run-1700000000000000", "incremental")
    assert records.find_record(settings, spec, began.run) is None
    written = records.record(
        settings,
        spec,
        replace(began, interval=(3, 9), version="v000002", outcome="rejected", reasons=("why",)),
    )
    assert written.ended_us > began.started_us
    assert records.find_record(settings, spec, began.run) == written
    assert records.records(settings, spec) == [written]
    (path,) = (settings.line_home("coupons") / "cycles").iterdir()
    assert path.name == "1700000000000000-v000002.json"


def test_a_name_that_is_no_runs_is_refused() -> None:
    with pytest.raises(InputError, match="is not a cycle's name"):
        records.started("../run-1", "incremental")


def test_the_cycle_and_its_records_speak_of_the_same_things() -> None:
    assert (cycle.Cycle, cycle.find_record) == (records.Cycle, records.find_record)


def test_reading_a_record_and_launching_import_nothing_heavy() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    )
    assert not HEAVY & set(json.loads(result.stdout))
