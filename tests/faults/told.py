"""What a fault test found, for docs/results.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from headrace.atomic import write_json
from headrace.settings import PROJECT


def accounted(numbers: Iterable[int], total: int) -> dict[str, int]:
    """How many of the records 0 … total-1 are absent, and how many are there once too often."""
    times = np.bincount(np.fromiter(numbers, np.int64), minlength=total)
    duplicated = int(np.maximum(times - 1, 0).sum())
    return {"lost": int((times[:total] == 0).sum()), "duplicated": duplicated}


def tell(
    name: str,
    what: str,
    test: str,
    stages: Mapping[str, int],
    end: str,
    counts: Mapping[str, int],
    recovered_s: Sequence[float] = (),
    repeated: Sequence[int] | None = None,
    unit: str = "",
) -> None:
    """Write `out/faults/<name>.json`.

    `recovered_s`: from the end of a fault to work going on; `repeated`: for each fault how many
    units of work (`unit` names them) were done again after it.
    """
    found: dict[str, object] = {
        "what": what,
        "command": f"pytest {test}",
        "kills": sum(stages.values()),
        "stages": dict(stages),
        "end": end,
        **counts,
    }
    if recovered_s:
        found["recovered_s"] = {
            "median": round(float(np.median(recovered_s)), 2),
            "max": round(max(recovered_s), 2),
        }
    if repeated is not None:
        found["repeated"] = {"unit": unit, "all": sum(repeated), "most": max(repeated, default=0)}
    write_json(PROJECT / "out" / "faults" / f"{name}.json", found)
