"""A trainer of deltas that serving follows, and what is asked of who follows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.events import input_fields
from headrace.line import Champion, LineStore, Version
from headrace.line.fingerprint import carried, held_by
from headrace.model import Model, State
from headrace.model.delta import apply
from headrace.serving.swap import Follower
from headrace.settings import find_line, load_settings
from tests.serving import untrained

ABOUT: dict[str, Any] = {
    "from_tick": 0, "to_tick": 1, "excluded": [], "watermark_us": 0, "event_at_us": 0,
    "feature_service": "x_v1", "code": "test", "rows": 1, "metrics": {},
}  # fmt: skip


def small_line() -> LineSpec:
    declared = find_line(load_settings({}), "coupons")
    small = declared.model.model_copy(update={"table_bits": 10, "hidden": (4,)})
    return declared.model_copy(update={"model": small})


def fifty_rows(spec: LineSpec) -> pa.Table:
    """Model inputs to score."""
    draw = np.random.default_rng(0)
    schema = pa.schema(input_fields(spec))
    columns = [pa.array(draw.integers(0, 1000, 50)).cast(field.type) for field in schema]
    return pa.table(columns, schema=schema)


def served(follower: Follower, asked: pa.Table) -> NDArray[np.float64]:
    with follower.use() as loaded:
        return loaded.model.predict(asked)


class Writer:
    """A trainer of deltas: each touches some rows and the dense vector."""

    def __init__(self, root: Path, spec: LineSpec) -> None:
        self.lines = LineStore(root, spec.line)
        self.spec = spec
        self._draw = np.random.default_rng(1)
        self.states: dict[str, State] = {}
        first = self.lines.publish(untrained(spec).state(), parent=None, **ABOUT)
        self.states[first.version] = self.lines.load(first.version)[1]
        self.promote(first)

    def delta(self, parent: str, fingerprint: int | None = None) -> Version:
        before = self.states[parent]
        rows = np.sort(self._draw.choice(len(before["table"]), 300, replace=False))
        changes: State = {
            "rows/table": rows,
            "values/table": self._draw.random((300, before["table"].shape[1]), np.float32),
            "whole/linear": before["linear"] + 1,
            "whole/step": before["step"] + 1,
        }
        manifest = self.lines.get(parent)
        if fingerprint is None:
            fingerprint = carried(int(manifest.fingerprint, 16), held_by(before), changes)
        version = self.lines.publish_delta(
            changes, parent=manifest, fingerprint=fingerprint, **ABOUT
        )
        self.states[version.version] = apply(before, changes)
        return version

    def promote(self, version: Version, action: str = "promote") -> Champion:
        return self.lines.advance(self.lines.champion(), version.version, action, "test")

    def next(self) -> Version:
        """A delta to the champion, promoted."""
        champion = self.lines.champion()
        assert champion is not None
        version = self.delta(champion.version)
        self.promote(version)
        return version

    def scores(self, version: str, asked: pa.Table) -> NDArray[np.float64]:
        """What a fresh model answers that never saw another version."""
        model = Model(self.spec.model, self.spec.seed)
        model.load_state(self.states[version])
        return model.predict(asked)

    def damage(self, version: Version, keep: int | None) -> None:
        path = f"versions/{version.version}/state.safetensors.zst"
        if keep is None:
            self.lines.files.remove(path)
        else:
            raw = self.lines.files.read(path)
            assert raw is not None
            self.lines.files.replace(path, raw[:keep])
