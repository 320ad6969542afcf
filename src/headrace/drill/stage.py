"""The coupon campaign on simulated time: a model ranks, users click, and the loop's own kernel,
label join and request features make samples of it.

Everything random comes from the seed and the moment, so two runs that differ in a poison or a
model see the same users, candidates and tastes. Truth (who really clicked) is kept beside what
the log was told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from headrace.baseline import Vitals
from headrace.declaration import LineSpec
from headrace.drill.poison import CLEAN, Poison, Shown
from headrace.events import IMPRESSION, TIME, event_schema, served_schema
from headrace.ingest.intake import Intake, Malformed
from headrace.labels.state import LabelState
from headrace.requests import transform
from headrace.simulate.world import CATEGORIES, SECOND_US, SimulatorConfig, World
from headrace.windows import WindowState

STEP_US: Final = 5 * SECOND_US
Score = Callable[[pa.Table], np.ndarray[Any, np.dtype[np.float64]]]


@dataclass
class Seen:
    """What a stretch of time brought: samples, vitals, and the truth about what was shown."""

    samples: pa.Table
    vitals: Vitals
    truth: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = field(default_factory=list)

    @property
    def clicked(self) -> np.ndarray[Any, np.dtype[np.int8]]:
        """What humans did, (shown,)."""
        return np.concatenate([clicked for clicked, _ in self.truth]).astype(np.int8)

    @property
    def scores(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """What had been answered for the same impressions."""
        return np.concatenate([score for _, score in self.truth])


class Stage:
    """Traffic of one line; `play` goes on from where it stands."""

    def __init__(self, spec: LineSpec, config: SimulatorConfig, start_us: int) -> None:
        self.spec, self.config = spec, config
        self.world = World(config)
        self.windows, self.labels = WindowState(spec), LabelState(spec)
        self.at_us = start_us
        self._intake = Intake(spec)
        self._offset = 0
        self._due: list[tuple[int, dict[str, Any]]] = []  # arrival, event
        self._last_us = start_us

    def play(self, seconds: int, score: Score | None, version: str, poison: Poison = CLEAN) -> Seen:
        """Traffic of so many seconds, ranked by `score` (None: at random)."""
        parts, fates, refused, events, truth = [], Counter[str](), 0, 0, []
        engagements = 0
        end_us = self.at_us + seconds * SECOND_US
        while self.at_us < end_us:
            shown = self._ask(score, poison)
            people = ~np.char.startswith(shown.columns["user_id"].astype(str), "bot")
            truth.append((shown.human[people], shown.scores[people]))
            served = self._served(shown, version)
            refused += self._send(shown, poison)
            batch = self._arrived(self.at_us + STEP_US)
            self.at_us += STEP_US
            self.windows.append(self.labels.resolve(batch))
            emitted = self.labels.emit(served, self.at_us)
            self.windows.expire(self.at_us)
            parts.append(emitted.samples)
            fates.update(emitted.fates["fate"].to_pylist())
            events += batch.num_rows
            engagements += sum(name != IMPRESSION for name in batch["event"].to_pylist())
        vitals = Vitals(float(seconds), events, engagements, refused, dict(fates))
        return Seen(pa.concat_tables(parts).combine_chunks(), vitals, truth)

    def _ask(self, score: Score | None, poison: Poison) -> Shown:
        """The requests of a step: candidates, answers, what was shown, who clicked when."""
        config, world = self.config, self.world
        rng = np.random.default_rng([config.seed, 3, self.at_us // STEP_US])
        requests = max(int(rng.poisson(config.requests_per_s * STEP_US / SECOND_US)), 1)
        width = config.candidates
        asked_us = np.repeat(
            np.sort(rng.integers(self.at_us, self.at_us + STEP_US, requests)), width
        )
        user = np.repeat(rng.choice(config.users, requests, p=world.activity), width)
        slot = np.argsort(rng.random((requests, config.coupons)), axis=1)[:, :width].ravel()
        generation = world.generation(slot, asked_us)
        would = rng.random(len(slot))
        columns: dict[str, Any] = {
            "user_id": np.array([f"u{n:04d}" for n in user.tolist()], dtype=object),
            "item_id": np.array(world.item_id(slot, generation), dtype=object),
            "category": np.array(CATEGORIES, dtype=object)[world.slot_category[slot]],
            "discount": world.discount(slot, generation),
        }
        p_item = world.p_item(user, slot, asked_us)
        columns = poison.asked(columns, would < p_item, np.random.default_rng([self.at_us, 5]))
        table = self._features(columns, asked_us)
        scores = rng.random(len(slot)) if score is None else score(table)
        noise = rng.normal(0, config.exploration, len(slot))
        clipped = np.clip(np.nan_to_num(scores, nan=0.5), 1e-6, 1 - 1e-6)
        wish = np.log(clipped / (1 - clipped)) + noise
        size = np.repeat(rng.integers(config.shown[0], config.shown[1] + 1, requests), width)
        rank = np.argsort(np.argsort(-wish.reshape(requests, width), axis=1), axis=1).ravel()
        kept = np.flatnonzero(rank < size)
        position = rank[kept]
        p_click = world.p_click(user[kept], slot[kept], position, asked_us[kept])
        human = would[kept] < p_click
        delay = world.delays_us(rng, len(slot), self.spec.label.attribution_window)[kept]
        request = np.repeat(np.arange(requests), width)[kept]
        stem = f"d{self.at_us // STEP_US}"
        ids = [
            f"{stem}-{r:04d}:{p}" for r, p in zip(request.tolist(), position.tolist(), strict=True)
        ]
        return Shown(
            ids=ids,
            at_us=asked_us[kept],
            columns={name: values[kept] for name, values in columns.items()}
            | {"position": position},
            vectors=table.take(pa.array(kept)),
            scores=np.full(len(kept), np.nan) if score is None else scores[kept],
            human=human,
            delay_us=delay,
        )

    def _features(self, columns: dict[str, Any], asked_us: np.ndarray[Any, Any]) -> pa.Table:
        """Window values of the newest step and request features, as a server would read them."""
        fields = {f.name: f.type for f in event_schema(self.spec)}
        filled = {"position": np.zeros(len(asked_us), np.int64), **columns}
        table = pa.table(
            {n: pa.array(filled[n], fields[n], from_pandas=True) for n in self.spec.columns}
        )
        at = np.full(table.num_rows, self.at_us)
        values = self.windows.values(table, at)
        asked = table.append_column("request_at", pa.array(asked_us))
        for name in values.column_names:
            asked = asked.append_column(name, values[name])
        inputs = transform(self.spec, asked)
        for name in inputs.column_names:
            asked = asked.append_column(name, inputs[name])
        return asked

    def _served(self, shown: Shown, version: str) -> pa.Table:
        count = len(shown.ids)
        at = pa.array(shown.at_us).cast(TIME)
        given: dict[str, Any] = {name: shown.vectors[name] for name in shown.vectors.column_names}
        given |= {
            "impression_id": pa.array(shown.ids),
            "request_id": pa.array([name.split(":")[0] for name in shown.ids]),
            "served_at": at,
            "version": pa.repeat(version, count),
            "score": pa.array(shown.scores),
            "arm": pa.nulls(count, pa.string()),
            "propensity": pa.nulls(count, pa.float64()),
            "fallback": pa.nulls(count, pa.string()),
            **{f"{view}__at": pa.nulls(count, TIME) for view in self.spec.views},
        }
        schema = served_schema(self.spec)
        return pa.table([given[item.name] for item in schema], schema=schema)

    def _send(self, shown: Shown, poison: Poison) -> int:
        """Put the events on their way; returns how many the collector refused."""
        refused = 0
        for due_us, event in poison.sent(shown, self.spec, np.random.default_rng([self.at_us, 6])):
            try:
                row = self._intake.row(event, due_us)
            except Malformed:
                refused += 1
            else:
                self._due.append((due_us, row))
        return refused

    def _arrived(self, end_us: int) -> pa.Table:
        """Events that arrive before `end_us`, in order, with their offsets."""
        self._due.sort(key=lambda each: each[0])
        rows = []
        while self._due and self._due[0][0] < end_us:
            due_us, row = self._due.pop(0)
            self._last_us = max(self._last_us + 1, due_us)
            rows.append(row | {"arrival_at": self._last_us})
        table = pa.Table.from_pylist(rows, schema=event_schema(self.spec))
        offsets = np.arange(self._offset, self._offset + len(rows), dtype=np.int64)
        self._offset += len(rows)
        return table.append_column("offset", pa.array(offsets))
