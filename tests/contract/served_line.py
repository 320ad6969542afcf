"""A small line whose ticks are served by its versions: what guard and race are tried on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.declaration import LineSpec
from headrace.events import input_fields, served_schema
from headrace.log.files import FileLog
from headrace.model import Model
from headrace.sample import read_samples
from headrace.settings import PROJECT, find_line, load_settings
from headrace.train import code_of
from tests.contract import written_line as written

CHANGES = {
    "attribution_window: 10m, provisional_after: 10s": "attribution_window: 2s",
    "gates:": "guard: {alpha: 0.01, window: 10m, min_requests: 100}\ngates:",
}


@cache
def model_of(spec_json: str) -> Model:
    """One model for each declaration: tracing a graph costs more than all else here."""
    spec = LineSpec.model_validate_json(spec_json)
    return Model(spec.model, spec.seed)


class ServedLine(written.Line):
    """Rows of a tick carry the score that their version gives them, also in the served log.

    `split`: the arm that every other request is said to have been drawn for. `fallback`: who is
    said to have stood in.
    """

    split: str | None = None
    fallback: str | None = None

    def commit(self, tick: int, columns: dict[str, Any], events: tuple[int, int]) -> None:
        version = columns["version"][0]
        if self.split is not None:  # every other request is drawn for the challenger
            odd = np.arange(written.ROWS) % 2 == 1
            columns["arm"] = np.where(odd, self.split, "champion").tolist()
            columns["propensity"] = np.full(written.ROWS, 0.5)
        columns["fallback"] = [self.fallback] * written.ROWS
        if version != "bootstrap":
            columns["score"] = self.score(version, columns)
            schema = served_schema(self.spec)
            log = FileLog(self.home / "log" / "served", schema, writer=True)
            log.append(pa.table({f.name: columns[f.name] for f in schema}).cast(schema))
            log.close()
        super().commit(tick, columns, events)

    def score(self, version: str, columns: dict[str, Any]) -> np.ndarray:
        schema = pa.schema(input_fields(self.spec))
        model = model_of(self.spec.model_dump_json())
        model.load_state(self.store.load(version)[1])
        return model.predict(pa.table({f.name: columns[f.name] for f in schema}).cast(schema))

    def train(
        self,
        to_tick: int,
        labels: Callable[[np.ndarray], np.ndarray] | None = None,
        epochs: int = 2,
    ) -> str:
        """Publish a base that learned ticks [0, to_tick), perhaps with other labels."""
        rows = read_samples(self.spec, self.home, 0, to_tick)
        if labels is not None:
            label = labels(rows["label"].to_numpy().astype(bool)).astype(np.float32)
            for name, weight in (("positive_weight", label), ("negative_weight", 1 - label)):
                at = rows.schema.get_field_index(name)
                rows = rows.set_column(at, rows.schema.field(at), pa.array(weight, pa.float32()))
        model = model_of(self.spec.model_dump_json())
        model.load_state(blank(self.spec.model_dump_json()))
        for _ in range(epochs):
            model.learn(rows)
        return self.store.publish(
            model.state(), parent=None, from_tick=0, to_tick=to_tick, excluded=[],
            watermark_us=1, event_at_us=1, feature_service=self.spec.feature_service,
            code=code_of(self.spec), rows=rows.num_rows, metrics={"label_rate": 0.2},
        ).version  # fmt: skip

    def crown(self, version: str, action: str = "promote") -> None:
        self.store.advance(self.store.champion(), version, action, "test")


@cache
def blank(spec_json: str) -> dict[str, np.ndarray]:
    """The state of a model that has learned nothing."""
    spec = LineSpec.model_validate_json(spec_json)
    return {name: array.copy() for name, array in Model(spec.model, spec.seed).state().items()}


def begin(root: Path, ticks: int = 30) -> None:
    """Write a line of `ticks` bootstrapped ticks of 50 requests, and its champion v000001.

    Ticks that come later lie a day ahead, so that every champion was crowned before them.
    """
    written.START_US = time.time_ns() // 1_000 - (ticks + 1) * 1_000_000
    text = written.LINE
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    (root / "lines").mkdir()
    (root / "lines" / "tiny.yaml").write_text(text, encoding="utf-8")
    line = opened(root)
    line.tick(ticks)
    written.START_US += 86_400_000_000
    line.crown(line.train(ticks))


def opened(root: Path, **environ: str) -> ServedLine:
    """The line below a root, or below a copy of one."""
    settings = load_settings(
        {
            "HEADRACE_HOME": str(root / "home"),
            "HEADRACE_LINES_DIR": str(root / "lines"),
            "HEADRACE_FEATURE_REPO": str(PROJECT / "feature_repo"),
        }
        | environ
    )
    return ServedLine(settings, find_line(settings, "tiny"))


def copied(root: Path, to: Path, **environ: str) -> ServedLine:
    """A copy to play with."""
    shutil.copytree(root, to / "copy")
    return opened(to / "copy", **environ)
