"""The coupon campaign on simulated time: a model ranks, users click.

Everything random comes from the seed and the moment, so two runs that differ in a poison or a
model see the same users, candidates and tastes.
"""

from __future__ import annotations

import copy
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.drill.poison import CLEAN, Poison, Shown
from headrace.drill.stage import Passage, Score, Seen, Tally
from headrace.simulate.world import CATEGORIES, SECOND_US, SimulatorConfig, World

STEP_US: Final = 5 * SECOND_US


class Campaign:
    """Simulated traffic of one line; `play` goes on from where it stands (see `Stage`)."""

    ranks = True
    day = ""

    def __init__(self, spec: LineSpec, config: SimulatorConfig, start_us: int) -> None:
        self.spec, self.config = spec, config
        self.world = World(config)
        self.passage = Passage(spec, start_us)
        self.at_us = start_us

    def lasts(self, seconds: int) -> bool:
        """Users come as long as it is played."""
        return True

    def copy(self) -> Self:
        """See `Stage.copy`."""
        return copy.deepcopy(self)

    def play(self, seconds: int, score: Score | None, version: str, poison: Poison = CLEAN) -> Seen:
        """Traffic of so many seconds, ranked by `score` (None: at random)."""
        tally = Tally()
        end_us = self.at_us + seconds * SECOND_US
        while self.at_us < end_us:
            shown, vectors, scores = self._ask(score, poison)
            people = ~np.char.startswith(shown.columns["user_id"].astype(str), "bot")
            tally.truth.append((shown.happened[people], scores[people]))
            served = self.passage.served(shown, vectors, scores, version)
            rng = np.random.default_rng([self.at_us, 6])
            tally.refused += self.passage.send(poison.sent(shown, self.spec, rng))
            self.at_us += STEP_US
            batch = self.passage.arrived(self.at_us)
            tally.take(batch, self.passage.emitted(served, self.at_us))
        return tally.seen(seconds)

    def _ask(
        self, score: Score | None, poison: Poison
    ) -> tuple[Shown, pa.Table, NDArray[np.float64]]:
        """The requests of a step: candidates, answers, what was shown, who clicked when; with
        vectors and scores of what was shown.
        """
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
        table = self._vectors(columns, asked_us)
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
        shown = Shown(
            ids=ids,
            at_us=asked_us[kept],
            columns={name: values[kept] for name, values in columns.items()}
            | {"position": position},
            happened=human,
            known=human,
            delay_us=delay,
        )
        answered = np.full(len(kept), np.nan) if score is None else scores[kept]
        return shown, table.take(pa.array(kept)), answered

    def _vectors(self, columns: dict[str, Any], asked_us: NDArray[np.int64]) -> pa.Table:
        """As a server would read them: window values of the newest step."""
        none = np.zeros(len(asked_us), np.int64)  # no place on the page yet
        return self.passage.vectors(
            {"position": none, **columns}, asked_us, np.full(len(asked_us), self.at_us)
        )
