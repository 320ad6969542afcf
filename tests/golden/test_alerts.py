"""The Prometheus operator gets the rules that a Prometheus of one's own reads.

`make golden` writes them anew.
"""

from __future__ import annotations

import os

import yaml

from headrace.settings import PROJECT

RULES = PROJECT / "infra" / "prometheus" / "headrace.rules.yml"
HELD = PROJECT / "infra" / "k8s" / "base" / "alerts.yaml"
HEAD = "# Written by `make golden` from infra/prometheus/headrace.rules.yml.\n"


def test_the_operators_rules_are_those_of_the_file() -> None:
    wanted = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "headrace"},
        "spec": yaml.safe_load(RULES.read_text(encoding="utf-8")),
    }
    if os.environ.get("HEADRACE_GOLDEN") == "write":
        text = HEAD + yaml.safe_dump(wanted, sort_keys=False, width=1000)
        HELD.write_text(text, encoding="utf-8")
    assert yaml.safe_load(HELD.read_text(encoding="utf-8")) == wanted
