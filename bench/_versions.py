"""Versions of the benchmarks' line that follow each other, each by what 200 rows teach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from bench._bare import LINE
from bench._measure import SEED
from bench._serving import about
from headrace.declaration import LineSpec
from headrace.events import input_fields
from headrace.line import LineStore, Version
from headrace.model import Model
from headrace.serving.resident import Resident
from headrace.settings import Settings


def following(settings: Settings, spec: LineSpec) -> Iterator[Version]:
    """Publish, each time one is asked for, the next delta after the champion of now; crown none."""
    lines = LineStore(settings.line_store_url(LINE), LINE)
    champion = lines.champion()
    assert champion is not None
    parent, state = lines.load(champion.version)
    model, resident = Model(spec.model, spec.seed), Resident(spec)
    model.load_state(state)
    resident.load(parent, state)
    rng = np.random.default_rng(SEED)
    while True:
        model.learn(samples(spec, rng))
        changes = model.delta()
        new = lines.publish_delta(
            changes, parent=parent, fingerprint=resident.carried(changes), **about(spec)
        )
        resident.advance(new, changes)
        model.mark()
        yield new
        parent = new


def samples(spec: LineSpec, rng: np.random.Generator, size: int = 200) -> pa.Table:
    """Rows to learn, of no ids that a request asks for."""
    columns: dict[str, Any] = {
        field.name: rng.integers(0, 2**62, size)
        if pa.types.is_integer(field.type)
        else rng.normal(size=size)
        for field in input_fields(spec)
    }
    clicked = (rng.random(size) < 0.1).astype(np.float32)
    return pa.table(columns | {"positive_weight": clicked, "negative_weight": 1 - clicked})
