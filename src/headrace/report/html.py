"""The report as one self-contained page: figures, charts, and why each gate decided as it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from headrace.report.charts import Marks, charts

NONE = "\u2013"
_TEMPLATES = Path(__file__).parent / "templates"


def page(
    measured: Mapping[str, Any],
    series: Mapping[str, list[float]],
    champions: Sequence[Mapping[str, Any]],
    drills: Mapping[str, Any],
) -> str:
    """HTML text. `series` has the plotted points (times in µs), `champions` the pointer's moves."""
    marks = _marks(measured, series, champions, drills)
    drawn = charts(series, measured["cycles"]["list"], marks)
    return (
        environment(clock=_clock(marks))
        .get_template("report.html.j2")
        .render(
            report=measured,
            charts={name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704 our own SVG
            champions=[c for c in champions if c["at_us"] >= marks.start_us],
            checks=measured.get("checks", []),
        )
    )


def environment(**filters: Callable[..., str]) -> Environment:
    """The templates of the reports, with the filters `figure`, `percent` and these."""
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update({"figure": figure, "percent": percent, **filters})
    return made


def figure(value: float | int | None, digits: int = 2) -> str:
    """A number for people; a dash where there is none."""
    if value is None:
        return NONE
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    return f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return NONE if value is None else f"{100 * value:.{digits}f}\u202f%"


def _clock(marks: Marks) -> Callable[[int], str]:
    def clock(at_us: int) -> str:
        seconds = int((at_us - marks.start_us) / 1e6)
        sign = "-" if seconds < 0 else ""
        return f"{sign}{abs(seconds) // 60}:{abs(seconds) % 60:02d}"

    return clock


def _marks(
    measured: Mapping[str, Any],
    series: Mapping[str, list[float]],
    champions: Sequence[Mapping[str, Any]],
    drills: Mapping[str, Any],
) -> Marks:
    start = int(measured["started_us"])
    poison, rollback = drills.get("poison"), drills.get("rollback")
    ends = [start + 60_000_000, *series["staleness_at_us"], *series["at_us"]]
    return Marks(
        start_us=start,
        end_us=int(max(ends)),
        promotions_us=tuple(
            c["at_us"] for c in champions if c["action"] == "promote" and c["at_us"] >= start
        ),
        poison_us=(poison["from_us"], poison["to_us"]) if poison else None,
        rollback_us=rollback["at_us"] if rollback else None,
        forward_us=rollback.get("forward_us") if rollback else None,
        shock_us=measured["simulator"].get("shock_at_us"),
    )
