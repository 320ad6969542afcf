"""What docs/scale.md names is there: settings, keys of a line, fields of manifests, its figures."""

from __future__ import annotations

import re

from typer.main import get_command

from headrace import results
from headrace.cli import app
from headrace.settings import PROJECT

TEXT = (PROJECT / "docs" / "scale.md").read_text(encoding="utf-8")
STEPS = TEXT.partition("## The steps")[2].partition("## What it costs")[0]


def named(column: str) -> set[str]:
    """What stands in backticks in the last column of the tables of steps and parts."""
    cells = [row.split("|")[-2] for row in column.splitlines() if row.startswith("| ")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_each_step_and_part_names_a_setting_that_there_is() -> None:
    settings = (PROJECT / "src/headrace/settings/environment.py").read_text(encoding="utf-8")
    keys = (PROJECT / "docs/lines.md").read_text(encoding="utf-8")
    manifests = "".join(
        path.read_text(encoding="utf-8") for path in (PROJECT / "infra").rglob("*.yaml")
    )
    found = named(STEPS)
    assert len(found) > 15
    for name in found:
        if name.startswith("HEADRACE_"):
            assert f'"{name.partition("=")[0]}"' in settings, name
        elif name.startswith("headrace "):
            verb = get_command(app).commands[name.split()[1]]  # type: ignore[attr-defined]
            options = {option for parameter in verb.params for option in parameter.opts}
            assert set(re.findall(r"--\w+", name)) <= options, name
        elif "/" in name or name.endswith(".yaml"):
            assert (PROJECT / name).exists() or next((PROJECT / "infra").rglob(name), None), name
        elif name != "kafka-topics.sh":  # Kafka's own
            last = name.rpartition(".")[2]
            assert f"`{last}`" in keys or f"{last}:" in manifests or f"{last}:" in keys, name


def test_each_row_of_steps_and_parts_has_a_setting_but_the_first() -> None:
    rows = [row for row in STEPS.splitlines() if row.startswith("| ") and "`" not in row]
    assert [row for row in rows if not re.search(r"\| (Setting) \|$", row)] == []


def test_figures_of_one_core_are_printed_from_benchmarks() -> None:
    head, _, rest = TEXT.partition("<!-- units begins -->\n")
    table = rest.partition("<!-- units ends -->")[0]
    assert head and table.count("\n") > 9
    again = results._units(
        {
            "microbatch": {"claims": [
                {"name": f"CPU per event, {size}", "value": 2.0}
                for size in ("10,000 over 2,000,000", "100,000 over 2,000,000",
                             "100,000 over 10,000,000")
            ]},
            "push": {"claims": [], "table": {"rows": [
                ["SQLite, headrace", "48,530", "20.0"], ["Redis, headrace", "117,502", "8.0"]]}},
            "trainer": {"claims": [
                {"name": "CPU per sample, ftrl_deep", "value": 12.5},
                {"name": "delta of 9 rows of 34 numbers: written, CPU", "value": 40.0},
                {"name": "delta of 9 rows of 34 numbers: read and applied, CPU", "value": 20.0}]},
            "serving": {"claims": [], "table": {
                "rows": [["most requests a second, headrace", "400"]]}},
        }
    )  # fmt: skip
    units = [line.split("|")[1].split(",")[0].split(" of ")[0] for line in again.splitlines()]
    assert units == [
        line.split("|")[1].split(",")[0].split(" of ")[0] for line in table.splitlines()
    ]
    assert "| 2.0 µs of CPU an event | 500,000 events |" in again
    assert "| 8.0 µs of CPU a row | 120,000 rows |" in again
    assert "| 2.5 ms at the full rate | 400 requests |" in again
