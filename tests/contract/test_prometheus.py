"""Alert rules do what their own tests say, and ask only for metrics that the services export."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from headrace import guard
from headrace.guard import Pass
from headrace.ingest.collector import gauges
from headrace.ingest.limits import Admission, Limits
from headrace.ingest.metrics import IngestMetrics
from headrace.learner.metrics import LearnerMetrics
from headrace.log.stamp import EventWriter
from headrace.scoring.pulse import Pulse, Standing, beat
from headrace.serving.features import Features
from headrace.serving.metrics import ServingMetrics
from headrace.settings import PROJECT, load_line, load_settings
from headrace.store import Store
from headrace.watch import Watched

RULES = PROJECT / "infra" / "prometheus" / "headrace.rules.yml"
DASHBOARD = PROJECT / "infra" / "grafana" / "headrace.json"
ABSENT = "no promtool: apt-get install prometheus"


class _Nobody:
    """Stands for a follower and a served log of which nothing is asked but names."""

    def current(self) -> None:
        from headrace.errors import EnvironmentFault

        raise EnvironmentFault("no champion")

    def __getattr__(self, name: str) -> object:
        return self if name == "delivered" else 0


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every series name of serving, collector, learner, guard and follower."""
    home = tmp_path_factory.mktemp("home")
    spec = load_line(PROJECT / "lines" / "coupons.yaml")
    serving = ServingMetrics(spec)
    features = Features(spec, Store(load_settings({"HEADRACE_HOME": str(home)})))
    serving.follows(_Nobody(), _Nobody(), features)  # type: ignore[arg-type]
    serving.ended("http", "answered", 0.01)
    ingest, learner = IngestMetrics(spec), LearnerMetrics(spec)
    writer = EventWriter(home / "log" / "events", spec)
    admission = Admission(Limits(), home, 0, lambda: 0)
    ingest.observe(gauges(admission, writer, home))
    pages = [meters.page().decode() for meters in (serving, ingest, learner)]
    writer.close()
    settings = load_settings({"HEADRACE_HOME": str(home)})
    seen = Watched(100, 400, 0.3, 1.0, 0.1, 0.0, (), rollback_helps=False)
    guard.write(settings, spec.line, Pass("v1", 1, 0, seen))
    pages.append((settings.line_home(spec.line) / "guard" / "guard.prom").read_text())
    follower = Pulse(spec.line, settings.line_home(spec.line), "served")
    follower.tell(Standing(), "")
    told = beat(settings.line_home(spec.line), "served").with_suffix(".prom")
    pages.append(told.read_text())
    return {
        sample.name
        for page in pages
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def asked(expression: str) -> set[str]:
    return set(re.findall(r"headrace_[a-z0-9_]+|headrace:[a-z0-9_:]+", expression))


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_rules_and_dashboard_ask_for_what_is_exported(exported: set[str]) -> None:
    known = exported | {rule["record"] for rule in rules() if "record" in rule}
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    expressions += [rule["expr"] for rule in rules()]
    assert len(expressions) > 40
    assert {name for each in expressions for name in asked(each)} - known == set()


def test_labels_asked_for_are_labels_there_are() -> None:
    from headrace.labels.state import FATES
    from headrace.learner.metrics import OUTCOMES as STEPS
    from headrace.serving.metrics import OUTCOMES

    text = RULES.read_text(encoding="utf-8")
    for name, values in (("fate", FATES), ("outcome", (*OUTCOMES, *STEPS))):
        told = re.findall(rf'{name}=~?"([^"]+)"', text)
        assert told
        assert {value for each in told for value in each.split("|")} <= set(values)


@pytest.mark.skipif(shutil.which("promtool") is None, reason=ABSENT)
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "headrace.rules.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "headrace.tests.yml"],
    ],
    ids=" ".join,
)
def test_promtool(arguments: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_look_at_and_the_worst_are_tested() -> None:
    tested = RULES.with_name("headrace.tests.yml").read_text(encoding="utf-8")
    for rule in rules():
        if "alert" in rule:
            assert rule["annotations"]["summary"]  # type: ignore[index]
            assert rule["labels"]["severity"] in ("page", "ticket")  # type: ignore[index]
    for name in ("BudgetBurnsFast", "NoChampion", "SourceSilent", "Down", "Alarm", "GuardAway"):
        assert f"alertname: Headrace{name}" in tested
