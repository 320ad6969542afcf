"""Rows and their scores: the one function that a batch, Spark's workers and the nearline run.

A row holds the line's declared columns. Where its features come from depends on what it says of
its time:

- nothing: the online store, as it is now;
- a moment: Feast's point-in-time history at that moment;
- a moment and, for each view, `<view>__at` as the served log has it: history at the moments of
  the rows that the server read. A tick that came online just after a request is then not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace import requests
from headrace.declaration import LineSpec
from headrace.events import TIME, input_fields, task_scores
from headrace.line import LineStore
from headrace.serving.pinned import Held
from headrace.serving.predict import Ready, predict
from headrace.serving.resident import Resident
from headrace.settings import Settings
from headrace.store import Store

_ONLINE_ROWS: Final = 8_192  # keys of one statement; SQLite takes 32,766


@dataclass(frozen=True)
class Job:
    """What to score with, as it travels to Spark's workers.

    `at_column` names the moments of the rows (timestamp us UTC); without one, `now_us` is the
    moment of all of them.
    """

    settings: Settings
    spec: LineSpec
    version: str
    at_column: str | None
    now_us: int


class Scoring:
    """One version in memory, and the features of one home."""

    def __init__(self, job: Job) -> None:
        """Load the version. Raises `InputError` for an unknown one."""
        lines = LineStore(job.settings.line_store_url(job.spec.line), job.spec.line)
        resident = Resident(job.spec)
        version, state = lines.load(job.version)
        resident.load(version, state)
        self.ready = Held(version, resident.model)
        self._job = job
        self._store = Store(job.settings)

    def scored(self, rows: pa.Table) -> pa.Table:
        """The rows with the columns of `answer_fields` behind their own."""
        job = self._job
        inputs = inputs_of(self._store, job.spec, rows, job.at_column, job.now_us)
        return answered(job.spec, self.ready, rows, inputs)


def scored_there(job: Job, rows: pa.Table) -> pa.Table:
    """`Scoring.scored`, with the version loaded once for all calls in a process."""
    line = job.spec.model_dump_json()
    return _scoring(job.settings, line, job.version, job.at_column, job.now_us).scored(rows)


@lru_cache(maxsize=1)
def _scoring(
    settings: Settings, line: str, version: str, at_column: str | None, now_us: int
) -> Scoring:
    spec = LineSpec.model_validate_json(line)
    return Scoring(Job(settings, spec, version, at_column, now_us))


def for_workers(settings: Settings) -> Settings:
    """The settings without what a worker that scores has no need to know."""
    return replace(settings, kfp_endpoint=None, kfp_token=None, mlflow_uri=None)


def as_served(spec: LineSpec, names: list[str]) -> bool:
    """Whether rows of these columns say which feature rows a server read for them."""
    return bool(spec.views) and all(f"{view}__at" in names for view in spec.views)


def inputs_of(
    store: Store, spec: LineSpec, rows: pa.Table, at_column: str | None, now_us: int
) -> pa.Table:
    """The model inputs of rows (`events.input_fields`), row for row."""
    names = [field.name for field in input_fields(spec)]
    asked = rows.select(list(spec.columns))
    if at_column is None:
        moments = pa.repeat(pa.scalar(now_us, pa.int64()), rows.num_rows)
        asked = asked.append_column("request_at", moments)
        parts = (asked.slice(at, _ONLINE_ROWS) for at in range(0, asked.num_rows, _ONLINE_ROWS))
        found = [store.read_online(spec, part).select(names) for part in parts]
        return pa.concat_tables([pa.schema(input_fields(spec)).empty_table(), *found])
    asked = asked.append_column("request_at", rows[at_column].cast(pa.int64()))
    if not as_served(spec, rows.column_names):
        return store.read_history(spec, asked).select(names)
    return requests.transform(spec, _with_windows_as_read(store, spec, rows, asked))


def _with_windows_as_read(
    store: Store, spec: LineSpec, rows: pa.Table, asked: pa.Table
) -> pa.Table:
    """Rows asked with their window features, those of the row that was read of each view."""
    for view, features in spec.views.items():
        keys = rows.select(list(features[0].key))
        # a key without a row had none at any time: history holds nothing of 1970
        read_at = pc.fill_null(rows[f"{view}__at"].cast(TIME).cast(pa.int64()), 0)
        found = store.read_view_history(spec, view, keys.append_column("request_at", read_at))
        for feature in features:
            asked = asked.append_column(feature.name, found[feature.name])
    return asked


def answer_fields(spec: LineSpec) -> list[pa.Field]:
    """What a score consists of: probabilities, the version that gave them, its watermark."""
    scores = ("score", *task_scores(spec))
    return [
        *(pa.field(name, pa.float64(), nullable=False) for name in scores),
        pa.field("version", pa.string(), nullable=False),
        pa.field("watermark", TIME, nullable=False),
    ]


def answered(spec: LineSpec, ready: Ready, rows: pa.Table, inputs: pa.Table) -> pa.Table:
    """Rows with the answer to each behind its own columns."""
    tasks = predict(ready, inputs)
    size, version = rows.num_rows, ready.version
    columns = {"score": tasks.pop("click")}
    columns |= {f"{task}_score": scores for task, scores in tasks.items()}
    given = {name: pa.array(scores, pa.float64()) for name, scores in columns.items()}
    given["version"] = pa.repeat(pa.scalar(version.version, pa.string()), size)
    given["watermark"] = pa.repeat(pa.scalar(version.watermark_us, TIME), size)
    for field in answer_fields(spec):
        rows = rows.append_column(field, given[field.name])
    return rows
