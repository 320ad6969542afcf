"""The drift watch on a line's ticks: what the newest window is held against."""

from __future__ import annotations

from headrace import drift
from headrace.sample import read_tick
from tests.contract.written_line import Line


def test_a_window_longer_than_the_gates_reference_is_held_against_more_of_the_past(
    line: Line,
) -> None:
    spec = line.spec.model_copy(
        update={
            "gates": line.spec.gates.model_copy(
                update={"data": line.spec.gates.data.model_copy(update={"reference_rows": 100})}
            ),
            "drift": line.spec.drift.model_copy(update={"window": 4_000_000}),
        }
    )
    seen = drift.look(line.settings, spec, now_us=read_tick(line.home, 39).at_us)
    assert (seen.from_tick, seen.to_tick, seen.rows) == (36, 40, 200)
    assert seen.reference_rows == drift.STRETCHES * 200
    assert {"item", "clicks_log"} <= set(seen.figures)
    assert seen.outcome == "none"
