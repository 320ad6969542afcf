"""The replay section of docs/results.md, rendered from the JSON of `headrace replay`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from headrace.errors import InputError
from headrace.replay.scoreboard import POLICIES

_KEYS: Final = {"line", "policies", "counts", "parity"}


def render(results: Sequence[dict[str, Any]]) -> str:
    """The section for these replay results, in the order given."""
    parts = ["## Replay on real data", "", *_preface()]
    for result in results:
        parts += ["", *_line(result)]
    return "\n".join(parts) + "\n"


def read(path: Path) -> dict[str, Any]:
    """One result of `headrace replay --json`."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(f"{path}: not a replay result: {problem}; run headrace replay") from None
    if not isinstance(result, dict) or not result.keys() >= _KEYS:
        raise InputError(f"{path}: not a replay result; write it with headrace replay --json")
    return result


def _preface() -> list[str]:
    return [
        "Every row is predicted before it is learned, and a label is learned only after it was",
        "known. All policies score the same rows with the same features, whose windows are always",
        "fresh: *fresh* learns at the line's incremental cadence, *daily* at midnight, *frozen*",
        "stops after the first month (the first day, in less than 60 days of data). Before their",
        "first midnight *daily* and *frozen* know nothing and predict one half; the table from the",
        "freeze on leaves that start out.",
    ]


def _line(result: dict[str, Any]) -> list[str]:
    training, after = result["training"], result["after_freeze"]
    fresh = result["policies"]["fresh"]
    period, name = ("by_month", "month") if "by_month" in fresh else ("by_day", "day")
    parts = [
        f"### {result['line']}",
        "",
        f"{result['rows']:,} labelled rows, {100 * result['label_rate']:.2f}% positive; fresh "
        f"learns every {duration(training['incremental_s'])}; frozen after the "
        f"{training['frozen_rule']} (from {training['frozen_from']}).",
        "",
        *table(
            [
                "policy",
                "log loss",
                "AUC",
                "calibration",
                "log loss from the freeze on",
                "AUC",
                "calibration",
            ],
            [
                [
                    policy,
                    *_figures(result["policies"][policy]),
                    *_figures(after["policies"].get(policy, {})),
                ]
                for policy in POLICIES
            ],
        ),
        "",
        *(f"- {_comparison(one)}" for one in result["comparisons"]),
    ]
    if result.get("explanation"):
        parts += ["", result["explanation"]]
    parts += ["", *_periods(result, period, name), "", _accounts(result), "", _parity(result)]
    parts += ["", _missing(result)]
    return parts


def _comparison(one: dict[str, Any]) -> str:
    return (
        f"{one['better']} against {one['worse']}: log loss lower by {one['logloss_gain']:.5f} "
        f"({one['low']:.5f} to {one['high']:.5f}, resampling {one['resampled']}); lower on "
        f"{one['days_better']} of {one['days'] - one['days_equal']} days on which they differ"
    )


def _periods(result: dict[str, Any], period: str, name: str) -> list[str]:
    rows = []
    for parts in zip(*(result["policies"][policy][period] for policy in POLICIES), strict=True):
        first = parts[0]
        cells = [str(first[name]), f"{first['rows']:,}", f"{100 * first['label_rate']:.1f}%"]
        for key in ("logloss", "auc", "calibration"):
            cells += [_number(part[key]) for part in parts]
        rows.append(cells)
    titles = [f"{policy} {key}" for key in ("log loss", "AUC", "cal.") for policy in POLICIES]
    return table([name, "rows", "positive", *titles], rows)


def _accounts(result: dict[str, Any]) -> str:
    counts = result["counts"]
    gates = result["training"]["gates"]["fresh"]
    return (
        f"Rows of the file: {counts['rows']:,} = {counts['excluded']:,} excluded + "
        f"{counts['malformed']:,} malformed + {counts['empty']:,} empty + "
        f"{counts['rows'] - counts['excluded'] - counts['malformed'] - counts['empty']:,} used, "
        f"giving {counts['impressions']:,} impressions: {counts['scored']:,} scored, "
        f"{counts['without_label']:,} without a label, "
        f"{counts['fates'].get('duplicate_impression', 0):,} duplicates. Log records not "
        f"accounted for: {counts['unaccounted']}. {counts['samples']:,} samples, "
        f"{counts['corrections']:,} of them corrections. Gates: {gates['refused']} of "
        f"{gates['steps']:,} incremental steps refused ({gates['refused_rows']:,} "
        "rows); the full data suite agreed in "
        f"{gates['suite_checks'] - gates['suite_disagreements']} of {gates['suite_checks']} checks."
    )


def _parity(result: dict[str, Any]) -> str:
    found = result["parity"]
    features = ", ".join(f"{name} {count:,}" for name, count in found["by_feature"].items())
    told = f" ({features})" if features else ""
    return (
        f"Parity: {found['rows']:,} streamed vectors computed again in batch from the whole log, "
        f"{found['mismatches']:,} values differ{told}."
    )


def _missing(result: dict[str, Any]) -> str:
    shares = {name: one["missing_share"] for name, one in result["features"].items()}
    there = [f"{name} {100 * share:.2f}%" for name, share in shares.items() if share]
    return f"Missing features: {', '.join(there) or 'none'} (of {len(shares)} columns and inputs)."


def _figures(figures: dict[str, Any]) -> list[str]:
    return [_number(figures.get(key)) for key in ("logloss", "auc", "calibration")]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """So many seconds in the largest unit that fits a whole number of times."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)} {unit}"
    return f"{seconds:g} s"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (titles, rule, *rows)]
