"""How often the drift watch raises an alarm where nothing drifts.

Rows of a simulated campaign are shuffled, so that every window and its past are draws of the same
rows. Inputs, scores and label delay are asked with the limits of the line `coupons`; the test of
the loss is asked for a false alarm in one window of ten, a rate that can be counted.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from bench._measure import SEED, at_most
from headrace import drift
from headrace.declaration import LineSpec
from headrace.ingest.service import import_history
from headrace.labels.revisions import newest
from headrace.sample import head_tick, read_samples
from headrace.settings import find_line, load_settings
from headrace.simulate.world import SECOND_US, SimulatorConfig, history
from headrace.store import Store

KINDS: Final = ("inputs", "score", "delay", "concept")
ASKED: Final = 0.1
DAY_US: Final = 86_400 * SECOND_US
END_US: Final = 1_750_000_000_000_000


def run(*, quick: bool = False) -> dict[str, Any]:
    """500 windows of each size (quick: 5 of one), each with its own past of up to ten of them."""
    sizes, windows = ((500,), 5) if quick else ((500, 1_000, 2_000), 500)
    with tempfile.TemporaryDirectory() as name:
        spec, rows = _rows(Path(name), 300 if quick else 1_500)
    a_day = ASKED * DAY_US / spec.drift.window
    spec = spec.model_copy(
        update={"drift": spec.drift.model_copy(update={"max_false_alarms": a_day})}
    )
    rng = np.random.default_rng(SEED)
    counts = {}
    for size in sizes:
        counts[size] = Counter[str]()
        for _ in range(windows):
            drawn = rows.take(pa.array(rng.permutation(rows.num_rows)[: 11 * size]))
            found = drift.compare(spec, drawn.slice(size), drawn.slice(0, size))
            counts[size].update(list(found.drifted))
    shares = {
        kind: sum(each[kind] for each in counts.values()) / (windows * len(sizes)) for kind in KINDS
    }
    return {
        "what": "alarms of the drift watch on windows of rows that do not drift",
        "windows": windows * len(sizes),
        "peers": {},
        "table": {
            "heads": ["rows of a window", *(f"alarms of {kind}" for kind in KINDS)],
            "rows": [
                [f"{size:,}", *(f"{each[kind] / windows:.1%}" for kind in KINDS)]
                for size, each in counts.items()
            ],
        },
        "claims": [
            *(at_most(f"alarms of {kind} a window", shares[kind], "share", 0.005)
              for kind in KINDS[:-1]),
            at_most("alarms of the loss a window, 0.1 asked", shares["concept"], "share", ASKED),
        ],
    }  # fmt: skip


def _rows(home: Path, seconds: int) -> tuple[LineSpec, pa.Table]:
    """The newest label of each impression of a simulated past, scored by its item's click rate."""
    settings = load_settings({"HEADRACE_HOME": str(home)})
    spec = find_line(settings, "coupons")
    Store(settings).apply()
    events = history(spec, SimulatorConfig(seed=SEED, history_s=seconds), END_US)
    import_history(settings, spec, events, 4 * SECOND_US)
    line_home = settings.line_home(spec.line)
    rows = newest(read_samples(spec, line_home, 0, head_tick(line_home)))
    score = np.clip(rows["item_ctr_10m"].to_numpy(), 0.01, 0.99)
    place = rows.schema.get_field_index("score")
    return spec, rows.set_column(place, rows.schema.field(place), pa.array(score))
