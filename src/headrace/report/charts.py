"""The four charts of the report as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Text and axes are drawn in this colour and then handed to CSS as `currentColor`.
_INK: Final = "#123456"
# Mid-tones with enough contrast on white and on black; styles differ too, not only colours.
BLUE, ORANGE, GREEN, RED = "#4f7fd6", "#d07a1e", "#2b9a66", "#d1495b"

STYLE: Final = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **{f"{part}.color": _INK for part in ("text", "xtick", "ytick", "grid")},
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "grid.alpha": 0.15,
}

Champions = Sequence[Mapping[str, Any]]
Cycles = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Marks:
    """What is marked on every time axis. Times in int µs; `start_us` is its zero."""

    start_us: int
    end_us: int
    promotions_us: tuple[int, ...]
    poison_us: tuple[int, int] | None
    rollback_us: int | None
    forward_us: int | None
    shock_us: int | None

    def minutes(self, at_us: float) -> float:
        return (at_us - self.start_us) / 60e6


def charts(series: Mapping[str, list[float]], cycles: Cycles, marks: Marks) -> dict[str, str]:
    """SVG text by name: staleness, logloss, clicks, gates."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        return {
            "staleness": _staleness(series, marks),
            "logloss": _lines(series, marks, "loss", "log loss (nats)"),
            "clicks": _lines(series, marks, "click", "expected click rate"),
            "gates": _gates(cycles, marks),
        }


def _staleness(series: Mapping[str, list[float]], marks: Marks) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.9))
    axes = figure.subplots()
    at = [marks.minutes(value) for value in series["staleness_at_us"]]
    axes.plot(at, series["staleness_s"], color=BLUE, linewidth=1.6, label="newest learned event")
    axes.axhline(90, color=RED, linewidth=1, linestyle=(0, (6, 3)), label="goal: 90 s")
    axes.set_ylabel("age when served (s)")
    top = max([100.0, *series["staleness_s"]])
    axes.set_ylim(0, top * 1.08)
    _finish(axes, marks)
    _legend(axes)
    return svg(figure, "staleness")


def _lines(series: Mapping[str, list[float]], marks: Marks, prefix: str, label: str) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.9))
    axes = figure.subplots()
    at = [marks.minutes(value) for value in series["at_us"]]
    for name, color, dash in (
        ("served", BLUE, "-"),
        ("frozen", ORANGE, "--"),
        ("oracle", GREEN, ":"),
    ):
        shown = "frozen base" if name == "frozen" else name
        axes.plot(at, series[f"{prefix}_{name}"], dash, color=color, linewidth=1.8, label=shown)
    axes.set_ylabel(label)
    _finish(axes, marks, promotions=False)
    _legend(axes)
    return svg(figure, prefix)


def _gates(cycles: Cycles, marks: Marks) -> str:
    from matplotlib.figure import Figure

    rows = (("promoted", GREEN, "✓"), ("rejected", RED, "✗"), ("failed", ORANGE, "!"))
    figure = Figure(figsize=(9, 1.9))
    axes = figure.subplots()
    for height, (outcome, color, sign) in enumerate(reversed(rows)):
        for cycle in cycles:
            if cycle["outcome"] != outcome or cycle["ended_us"] < marks.start_us:
                continue
            start = max(marks.minutes(cycle["started_us"]), 0.0)
            end = marks.minutes(cycle["ended_us"])
            axes.barh(height, end - start, left=start, height=0.5, color=color)
            axes.text((start + end) / 2, height, sign, ha="center", va="center", fontsize=11)
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.2)
    _finish(axes, marks, promotions=False, grid="x")
    _top_labels(axes, marks)
    return svg(figure, "gates")


def _finish(
    axes: Axes, marks: Marks, promotions: bool = True, grid: Literal["x", "y"] = "y"
) -> None:
    """Draw what happened when, and the time axis in minutes since traffic began."""
    if promotions:
        for number, at_us in enumerate(marks.promotions_us):
            label = "promotion" if number == 0 else None
            axes.axvline(marks.minutes(at_us), color=GREEN, linewidth=1.2, label=label)
    if marks.poison_us is not None:
        start, end = (marks.minutes(value) for value in marks.poison_us)
        axes.axvspan(start, end, color=RED, alpha=0.18, linewidth=0, label="labels flipped")
    for moved_us, style, name in (
        (marks.rollback_us, "-.", "rollback"),
        (marks.forward_us, ":", None),
    ):
        if moved_us is not None:
            axes.axvline(marks.minutes(moved_us), color=ORANGE, linestyle=style, label=name)
    axes.set_xlim(0, max(marks.minutes(marks.end_us), 0.1))
    axes.set_xlabel("minutes of traffic")
    axes.grid(axis=grid)


def _legend(axes: Axes) -> None:
    """Above the plot, where no line runs."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=6, fontsize=8, borderaxespad=0.2)


def _top_labels(axes: Axes, marks: Marks) -> None:
    """Words above the marks, so that nothing hangs on colour alone."""
    words: list[tuple[float, float, str, str]] = []
    if marks.poison_us is not None:
        middle = sum(marks.minutes(at_us) for at_us in marks.poison_us) / 2
        words.append((middle, 1.02, "labels flipped", "center"))
    if marks.rollback_us is not None:
        words.append((marks.minutes(marks.rollback_us), 1.02, "rollback", "left"))
    if marks.shock_us is not None:
        axes.axvline(marks.minutes(marks.shock_us), color=BLUE, linestyle="--")
        words.append((marks.minutes(marks.shock_us), 0.04, " shock", "left"))
    for at, height, word, side in words:
        axes.annotate(word, (at, height), xycoords=("data", "axes fraction"), ha=side, fontsize=8)


def svg(figure: Any, salt: str) -> str:
    """The figure as inline SVG; `salt` keeps its ids apart from those of other figures."""
    import matplotlib as mpl

    target = io.StringIO()
    # ids inside the SVGs must differ, because all of them stand in one page
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(
            target, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
        )
    text = target.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")
