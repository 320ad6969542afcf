"""`headrace replay`: a real event file through the whole line, on its own clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from headrace.cli.options import LinePath, out, progress
from headrace.errors import IntegrityError
from headrace.settings import load_line


def replay(
    line: LinePath,
    data: Annotated[Path, typer.Option(help="Folder that the line's paths start from.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Stream a real event file through kernel, samples, trainer and gates, and compare policies."""
    from headrace.atomic import check_writable, write_text
    from headrace.replay.stream import replay as replay_line

    spec = load_line(line)
    if json_file is not None:
        check_writable(json_file)
    with progress(f"replay {spec.line}") as advance:
        result = replay_line(spec, data, advance)
    if json_file is not None:
        write_text(json_file, json.dumps(result, indent=2) + "\n")
    table = Table(
        "policy", "log loss", "AUC", "calibration", title=f"{spec.line}: {result['rows']}"
    )
    for name, policy in result["policies"].items():
        figures = (policy[key] for key in ("logloss", "auc", "calibration"))
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in figures))
    out.print(table)
    out.print(_counted(result["counts"]), highlight=False, markup=False)
    proof = result["parity"]
    told = (
        f"{proof['rows']:,} vectors computed again in batch, {proof['mismatches']:,} values differ"
    )
    out.print(told, highlight=False)
    if result.get("explanation"):
        out.print(result["explanation"])
    if proof["mismatches"]:
        raise IntegrityError(f"{told}; the first: {proof['first'][:3]}")


def _counted(counts: dict[str, Any]) -> str:
    """What was odd about the files' rows (the JSON has all counts), and the first bad rows."""
    shown = {name: counts[name] for name in ("duplicates", "unsorted", "malformed", "unmatched")}
    shown["values of a wrong type"] = sum(counts["unreadable_values"].values())
    told = ", ".join(f"{count:,} {name}" for name, count in shown.items())
    return "\n  ".join([f"{counts['rows']:,} rows: {told}", *counts["malformed_first"]])
