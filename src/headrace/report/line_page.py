"""The report of a line over an interval, as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from headrace.report.charts import BLUE, GREEN, ORANGE, STYLE, svg
from headrace.report.html import environment

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def page(measured: Mapping[str, Any]) -> str:
    """HTML text of what `interval.measure` gives; `parity` in it is optional."""
    told = {"parity": None, **measured}
    for row in told["by_time"]:
        row.setdefault("slice", None)
    for row in told["by_slice"]:
        row.setdefault("when", None)
    told["alarms"] = [
        {"reasons": None, "symptoms": None, "why": None, **alarm} for alarm in told["alarms"]
    ]
    drawn = {name: Markup(text) for name, text in _charts(told).items()}  # noqa: S704 our own SVG
    return (
        environment(moment=_moment)
        .get_template("line.html.j2")
        .render(
            r=told,
            charts={"staleness": None, "roc": None, **drawn},
            promoted=sum(cycle["outcome"] == "promoted" for cycle in told["cycles"]),
        )
    )


def _charts(told: Mapping[str, Any]) -> dict[str, str]:
    import matplotlib as mpl

    found = {}
    with mpl.rc_context(STYLE):
        if told["staleness"]["at_us"]:
            found["staleness"] = _staleness(told)
        if points := told["curves"]:
            found["roc"] = _roc(points)
            found["calibration"] = _calibration(points)
            found["ks"] = _ks(points)
    return found


def _staleness(told: Mapping[str, Any]) -> str:
    figure_of, axes = _axes(8.0, 2.6)
    start = told["from_us"]
    axes.plot((np.array(told["staleness"]["at_us"]) - start) / 60e6, told["staleness"]["seconds"],
              color=BLUE, linewidth=1)  # fmt: skip
    for champion in told["champions"]:
        axes.axvline((champion["at_us"] - start) / 60e6, color=GREEN, linewidth=0.8, alpha=0.6)
    axes.set_xlabel("minutes")
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    return svg(figure_of, "line-staleness")


def _roc(points: Mapping[str, list[float]]) -> str:
    figure_of, axes = _axes()
    axes.plot(points["false_positive"], points["true_positive"], color=BLUE)
    axes.plot([0, 1], [0, 1], linestyle="--", color=ORANGE, linewidth=1)
    axes.set_xlabel("of the others")
    axes.set_ylabel("of the clicked")
    return svg(figure_of, "line-roc")


def _calibration(points: Mapping[str, list[float]]) -> str:
    figure_of, axes = _axes()
    axes.plot(points["predicted"], points["observed"], marker="o", color=BLUE)
    most = max([*points["predicted"], *points["observed"]])
    axes.plot([0, most], [0, most], linestyle="--", color=ORANGE, linewidth=1)
    axes.set_xlabel("mean score")
    axes.set_ylabel("label rate")
    return svg(figure_of, "line-calibration")


def _ks(points: Mapping[str, list[float]]) -> str:
    figure_of, axes = _axes()
    axes.plot(points["score"], points["true_positive"][1:], color=GREEN, label="clicked")
    axes.plot(points["score"], points["false_positive"][1:], color=ORANGE, linestyle="--",
              label="others")  # fmt: skip
    axes.legend(fontsize=8)
    axes.set_xlabel("score")
    axes.set_ylabel("share at or above")
    return svg(figure_of, "line-ks")


def _axes(width: float = 4.0, height: float = 3.2) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height))
    axes = drawn.subplots()
    axes.grid(axis="y")
    return drawn, axes


def _moment(at_us: int) -> str:
    return str(np.datetime64(at_us, "us").astype("datetime64[s]")).replace("T", " ")
