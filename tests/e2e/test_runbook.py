"""Every command of docs/runbook.md is run, in its order; every alarm and alert has its entry."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from headrace.ingest.tick import resume, run_tick
from headrace.line import LineStore
from headrace.sample import Quarantine
from headrace.settings import PROJECT, find_line, load_settings
from tests.e2e.test_ingest_kill import prepare

TEXT = (PROJECT / "docs" / "runbook.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
HEADINGS = set(re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE))
RULES = PROJECT / "infra" / "prometheus" / "headrace.rules.yml"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose line has ticks, a refused window and three versions that passed."""
    from headrace.model import Model

    home = tmp_path / "home"
    settings = load_settings({"HEADRACE_HOME": str(home)})
    spec = find_line(settings, "coupons")
    line = settings.line_home("coupons")
    prepare(line, 600)
    state = resume(spec, line)
    while state.events_to < state.logs.events.head:
        plan = state.plan(state.events_to + 100)
        assert plan is not None
        run_tick(state, plan)
    Quarantine(line).add(3, 4, ["label_rate: 0.9 is above 0.5"])
    store = LineStore(settings.line_store_url("coupons"), "coupons")
    parent, weights = None, Model(spec.model, spec.seed).state()
    for number in range(3):
        weights["classes"] = np.array([10.0 + number, 10.0])
        version = store.publish(
            weights,
            parent=parent,
            from_tick=number,
            to_tick=number + 1,
            excluded=[],
            watermark_us=1_700_000_000_000_000 + number,
            event_at_us=1_700_000_000_000_000,
            feature_service=spec.feature_service,
            code="test",
            rows=100,
            metrics={},
        )
        parent = version.version
        store.put_verdict(parent, {"passed": True, "reasons": []})
        store.advance(store.champion(), parent, "promote", "test")
    return home


@pytest.mark.e2e
def test_every_command_of_the_runbook_does_what_its_section_says(home: Path) -> None:
    script = "\n".join(BLOCKS)
    assert "out/stack" in script
    script = script.replace("out/stack", str(home)).replace("PATH=$PWD/.venv/bin:$PATH\n", "")
    verbs = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
        env=os.environ | {"COLUMNS": "200", "PATH": f"{verbs}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    store = LineStore(str(home / "lines" / "coupons"), "coupons")
    moves = [(move.action, move.version) for move in store.history()[3:]]
    assert moves == [
        ("rollback", "v000002"),
        ("rollback", "v000001"),
        ("promote", "v000003"),
    ]
    assert '"lost": 0' in done.stdout
    assert '"duplicated": 0' in done.stdout
    assert "3 versions hold" in done.stdout
    assert (3, 4) not in {(q["from"], q["to"]) for q in Quarantine(store_home(home)).intervals()}


SPAN = "--from 2023-11-14T22:13:00Z --to 2023-11-14T22:23:00Z"
WHOLE = {  # what the text abbreviates
    "headrace quarantine show": "headrace quarantine show 3-4",
    "headrace report": f"headrace report {SPAN}",
    "headrace cases export": f"headrace cases export {SPAN} --output sheet.csv",
    "headrace cases import": "headrace cases import sheet.csv",
}
ELSEWHERE = {
    "headrace up": "tests/dags/test_stack.py",
    "headrace chaos --kills 10": "tests/faults/test_chaos.py",
}
PARITY = "headrace parity --line coupons --last 1000"  # its served vectors are made up: exit code 6


@pytest.mark.e2e
def test_every_command_within_a_sentence_can_be_run_too(home: Path, tmp_path: Path) -> None:
    named = dict.fromkeys(re.findall(r"`(headrace (?!\w+/)[^`]+)`", TEXT))
    assert len(named) > 10
    assert all((PROJECT / path).exists() for path in ELSEWHERE.values())
    script = ["headrace apply"]
    for command in named:
        if command not in ELSEWHERE:
            code = 6 if command == PARITY else 0
            script.append(f"code=0; {WHOLE.get(command, command)} || code=$?")
            script.append(f'[ $code -eq {code} ] || {{ echo "{command}: exit $code"; exit 1; }}')
    verbs = Path(sys.executable).parent
    environ = {"COLUMNS": "200", "HEADRACE_HOME": str(home)}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | environ | {"PATH": f"{verbs}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "version" in done.stdout  # parity names the cause of each difference


def store_home(home: Path) -> Path:
    return home / "lines" / "coupons"


def test_every_alarm_of_the_program_has_its_entry() -> None:
    watch = (PROJECT / "src" / "headrace" / "watch.py").read_text(encoding="utf-8")
    claims = set(re.findall(r'f"([a-z_]+): ', watch))
    assert {"calibrated", "logloss_as_promised"} <= claims
    assert claims - HEADINGS == set()
    sources = (PROJECT / "src" / "headrace").rglob("*.py")
    kinds = {
        kind
        for path in sources
        for kind in re.findall(r"raise_alarm\([^\"]*\"(\w+)\"", path.read_text(encoding="utf-8"))
    }
    assert kinds == {"drift", "guard", "quarantine", "race", "source"}
    assert all(any(kind in heading for heading in HEADINGS) for kind in kinds)


def test_every_alert_has_its_entry_and_a_link_to_it() -> None:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert {rule["alert"] for rule in alerts} - HEADINGS == set()
    for rule in alerts:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
    named = set(re.findall(r"^### (Headrace\w+)$", TEXT, re.MULTILINE))
    assert named == {rule["alert"] for rule in alerts}


def test_links_of_the_runbook_lead_somewhere() -> None:
    for name in ("runbook", "security", "scale"):
        text = (PROJECT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([\w/.-]*)(?:#([\w-]+))?\)", text):
            path = PROJECT / "docs" / (target or f"{name}.md")
            assert path.is_file(), target
            if anchor:
                headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
                assert anchor in slugs, f"{name}: {target}#{anchor}"
