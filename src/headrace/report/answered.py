"""The rows that a line answered in an interval of time, with the newest label of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.labels.revisions import newest, unsettled
from headrace.sample import Quarantine, head_tick, read_samples, tick_as_of, ticks
from headrace.settings import Settings

Floats = NDArray[np.float64]
MOST_SLICES: Final = 12
FEWEST: Final = 30


@dataclass(frozen=True)
class Interval:
    """What a report is about: `[from_us, to_us)`, its ticks, and the rows scored in it."""

    from_us: int
    to_us: int
    from_tick: int
    to_tick: int
    rows: pa.Table

    @property
    def labels(self) -> NDArray[np.int8]:
        found: NDArray[np.int8] = self.rows["label"].to_numpy()
        return found

    @property
    def scores(self) -> Floats:
        found: Floats = self.rows["score"].to_numpy()
        return found


def interval(settings: Settings, spec: LineSpec, from_us: int, to_us: int) -> Interval:
    """The interval's ticks, and the newest label of each impression that a model scored in it.

    Raises `InputError` where no tick lies in it.
    """
    home = settings.line_home(spec.line)
    head = head_tick(home)
    first, last = (min(tick_as_of(home, at_us), head) for at_us in (from_us, to_us))
    if first >= last:
        raise InputError(
            f"line {spec.line!r}: no tick lies between these times; it has {head} ticks"
            + (
                f", the last of {np.datetime64(ticks(home, head - 1)[0].at_us, 'us')}Z"
                if head
                else ""
            )
        )
    refused = [(q["from"], q["to"]) for q in Quarantine(home).intervals()]
    samples = read_samples(spec, home, first, last, exclude=refused)
    rows = newest(samples.filter(pa.array(~unsettled(spec, samples))))
    return Interval(from_us, to_us, first, last, rows.filter(pc.is_finite(rows["score"])))


def sliced_columns(spec: LineSpec) -> list[str]:
    """The columns behind the inputs in `gates.model.slices`."""
    sources = {f.name: f.of for f in spec.request_features if hasattr(f, "of")}
    wanted = [sources.get(name) for name in spec.gates.model.slices]
    return [name for name in wanted if isinstance(name, str) and name in spec.columns]


def slices(rows: pa.Table, column: str) -> dict[str, NDArray[np.bool_]]:
    """Which rows have each of the commonest values, (n,), by the slice's name."""
    values = np.array([str(value) for value in rows[column].to_pylist()], dtype=object)
    names, counts = np.unique(values.astype(str), return_counts=True)
    commonest = np.argsort(-counts, kind="stable")[:MOST_SLICES]
    often = [place for place in commonest if counts[place] >= FEWEST]
    return {f"{column} {names[place]}": values == names[place] for place in often}
