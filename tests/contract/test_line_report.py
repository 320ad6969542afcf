"""`headrace report`: one page of a line and an interval, from what the line left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from components.write_report import write_report
from headrace import alarms, cli
from headrace.quarantine import Quarantine
from headrace.report import interval
from headrace.report.place import report_path
from headrace.sample import head_tick, read_tick
from tests.contract import served_line
from tests.contract import written_line as written
from tests.contract.served_line import ServedLine


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedLine]:
    """A line that served 12 ticks by its first version and 12 by a second one."""
    root, start_us = tmp_path_factory.mktemp("reported"), written.START_US
    served_line.begin(root)
    line = served_line.opened(root)
    line.tick(12, version="v000001")
    line.crown(line.train(30, epochs=3))
    line.tick(12, version="v000002")
    Quarantine(line.home).add(52, 54, ["label rate over impressions is 0.9"])
    alarms.raise_alarm(line.settings, "tiny", "source", {"symptoms": ["volume: <0> events"]})
    yield line
    written.START_US = start_us


def between(line: ServedLine) -> tuple[int, int]:
    return read_tick(line.home, 29).at_us, read_tick(line.home, head_tick(line.home) - 1).at_us + 1


def test_figures_are_those_of_the_rows_that_were_answered(line: ServedLine) -> None:
    told = interval.measure(line.settings, line.spec, *between(line))
    assert told["quality"]["rows"] == 22 * written.ROWS  # two ticks lie in quarantine
    slices = {each["slice"]: each["rows"] for each in told["by_slice"]}
    assert slices["version v000001"] == 12 * written.ROWS
    assert slices["version v000002"] == 10 * written.ROWS
    assert sum(each["rows"] for each in told["by_time"]) == 22 * written.ROWS
    assert told["quality"]["auc"] > 0.6
    points = told["curves"]
    assert points["false_positive"][-1] == points["true_positive"][-1] == 1.0
    distance = np.array(points["true_positive"]) - np.array(points["false_positive"])
    assert distance.max() == pytest.approx(told["quality"]["ks"], abs=0.02)


class _Page(HTMLParser):
    """Tags and the addresses that a page asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [str(value) for name, value in attrs if name in ("src", "href")]


def test_the_page_stands_alone(
    line: ServedLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(line.settings.home))
    monkeypatch.setenv("HEADRACE_LINES_DIR", str(line.settings.lines_dir))
    page = tmp_path / "page.html"
    start, end = (f"{np.datetime64(at_us, 'us')}" for at_us in between(line))
    verb = ["report", "--line", "tiny", "--from", start, "--to", end, "--output", str(page)]
    cli.app([*verb, "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["parity"] == {"rows": 24 * written.ROWS, "mismatches": 0}
    text = page.read_text(encoding="utf-8")
    parsed = _Page()
    parsed.feed(text)
    assert parsed.tags.count("svg") == parsed.tags.count("figure") == 4
    assert parsed.tags.count("h1") == 1
    assert [address for address in parsed.asked if not address.startswith("#")] == []
    assert "label rate over impressions is 0.9" in text
    assert "no mismatch" in text
    worst = told["cases"]["all"]
    assert [case["label"] for case in worst].count(1) == interval.CASES
    assert all(case["impression_id"] in text for case in worst)
    assert parsed.tags.count("caption") >= 6
    assert "NaN" not in text


def test_the_pipelines_step_keeps_the_page_and_shows_it(
    line: ServedLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(line.settings.home))
    monkeypatch.setenv("HEADRACE_LINES_DIR", str(line.settings.lines_dir))
    start, end = (f"{np.datetime64(at_us, 'us')}" for at_us in between(line))
    shown = SimpleNamespace(path=str(tmp_path / "shown.html"))
    kept = Path(write_report.python_func("tiny", start, end, shown))
    assert kept == report_path(line.settings, "tiny", *between(line))
    assert kept.read_bytes() == (tmp_path / "shown.html").read_bytes()
    assert "<h2>Worst answers</h2>" in kept.read_text(encoding="utf-8")


def test_an_interval_without_ticks_is_named(line: ServedLine) -> None:
    with pytest.raises(cli.HeadraceError, match="no tick lies between these times; it has 54"):
        interval.measure(line.settings, line.spec, 0, 1)
