"""The simulated coupon campaign: who likes what, when, and how history came to be.

The world is a pure function of its seed and of absolute time, so history, live traffic and
the report all see the same one, and nothing has to be stored. Every slot of the campaign shows a
succession of coupons: each appears cold, lives 8-16 minutes and is replaced by an unrelated one.
Users' tastes drift sinusoidally; at `shock_at_us` one category's appeal jumps.

A click needs two independent things (the examination hypothesis, Craswell et al. 2008):
`p_click = examination[position] * p_item(user, coupon, time)`.

Where a line declares conversions, a clicked coupon is redeemed with `p_conversion`: who likes a
category also redeems more of it, but what only a deep discount made attractive is not redeemed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.errors import DeclarationError
from headrace.events import TIME, event_schema

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
COLUMNS: Final = ("user_id", "item_id", "category", "discount", "position")
CATEGORIES: Final = ("food", "travel", "beauty", "home", "sport", "books", "toys", "garden")
EXAMINATION: Final[Floats] = np.array([1.0, 0.86, 0.74, 0.65, 0.58, 0.52])
LATENT: Final = 4
BIAS: Final = -2.9
CONVERSION_BIAS: Final = -1.2


@dataclass(frozen=True)
class SimulatorConfig:
    """Size, pace and faults of the campaign. Shares are of all events; times in seconds or µs.

    `delays` is the mixture of engagement delays: (share, median in s, sigma of the log);
    `conversion_delays` that of conversions after their click.
    """

    seed: int = 7
    users: int = 500
    coupons: int = 120
    candidates: int = 12
    shown: tuple[int, int] = (4, 6)
    requests_per_s: float = 6.0
    exploration: float = 0.3
    history_s: int = 1200
    shock_at_us: int | None = None
    shock_size: float = 2.0
    duplicated: float = 0.005
    reordered: float = 0.01
    malformed: float = 0.002
    delays: tuple[tuple[float, float, float], ...] = (
        (0.80, 3.0, 0.6),
        (0.15, 20.0, 0.5),
        (0.05, 100.0, 0.5),
    )
    conversion_delays: tuple[tuple[float, float, float], ...] = (
        (0.6, 30.0, 0.8),
        (0.4, 240.0, 0.6),
    )

    def __post_init__(self) -> None:
        low, high = self.shown
        if not 1 <= low <= high <= len(EXAMINATION):
            raise DeclarationError(
                f"shown={self.shown} does not fit; give 1 <= low <= high <= {len(EXAMINATION)}"
            )
        if not high <= self.candidates <= self.coupons:
            raise DeclarationError(
                f"candidates={self.candidates} must lie between shown ({high}) and "
                f"coupons ({self.coupons})"
            )


def require_campaign_columns(spec: LineSpec) -> None:
    """Raise `DeclarationError` unless the line declares what the campaign's events carry."""
    missing = [name for name in COLUMNS if name not in spec.columns]
    if missing:
        raise DeclarationError(
            f"line {spec.line!r}: columns {missing} are not declared, and the simulator sends "
            f"{list(COLUMNS)}; simulate the line `coupons`"
        )


class World:
    """Latent truth. All methods broadcast over int64 arrays of users, slots and times (µs, UTC)."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        rng = np.random.default_rng([config.seed, 0])
        users, kinds = config.users, len(CATEGORIES)
        self._taste = rng.normal(0, 0.9, (users, kinds))
        self._drift = rng.uniform(0.2, 0.8, (users, kinds))
        self._period_us = rng.uniform(8, 40, (users, kinds)) * MINUTE_US
        self._phase = rng.uniform(0, 2 * np.pi, (users, kinds))
        self._latent = rng.normal(0, 1, (users, LATENT))
        self._appeal = rng.normal(0, 0.3, kinds)
        activity = rng.lognormal(0, 1, users)
        self.activity: Floats = activity / activity.sum()
        self.slot_category: Ints = np.arange(config.coupons, dtype=np.int64) % kinds
        self._life_us = (rng.uniform(8, 16, config.coupons) * MINUTE_US).astype(np.int64)
        self._born_us = rng.integers(0, self._life_us)
        self.shocked = int(rng.integers(kinds))

    def generation(self, slot: Ints, at_us: Ints) -> Ints:
        """Which coupon of its succession a slot shows at a time."""
        return (at_us + self._born_us[slot]) // self._life_us[slot]

    def discount(self, slot: Ints, generation: Ints) -> Floats:
        """Discount of a coupon, 0.05-0.6 in steps of 0.05."""
        return np.round(0.05 * np.floor(1 + 12 * self._uniform(1, slot, generation)), 2)

    def p_item(self, user: Ints, slot: Ints, at_us: Ints) -> Floats:
        """Probability that the user clicks the slot's coupon once it has been examined."""
        generation = self.generation(slot, at_us)
        kind = self.slot_category[slot]
        swing = 2 * np.pi * at_us / self._period_us[user, kind] + self._phase[user, kind]
        logit = BIAS + self._appeal[kind] + self._taste[user, kind]
        logit = logit + self._drift[user, kind] * np.sin(swing)
        logit = logit + 0.8 * self._normal(2, slot, generation)
        logit = logit + 2.0 * (self.discount(slot, generation) - 0.3)
        for factor in range(LATENT):
            liking = self._latent[user, factor] * self._normal(4 + 2 * factor, slot, generation)
            logit = logit + 0.2 * liking
        if self.config.shock_at_us is not None:
            hit = (kind == self.shocked) & (at_us >= self.config.shock_at_us)
            logit = logit + self.config.shock_size * hit
        probability: Floats = 1 / (1 + np.exp(-logit))
        return probability

    def p_click(self, user: Ints, slot: Ints, position: Ints, at_us: Ints) -> Floats:
        """True click probability at a shown position (0 is the top)."""
        return self.p_item(user, slot, at_us) * EXAMINATION[position]

    def p_conversion(self, user: Ints, slot: Ints, at_us: Ints) -> Floats:
        """Probability that the user redeems the slot's coupon once it has been clicked."""
        generation = self.generation(slot, at_us)
        kind = self.slot_category[slot]
        logit = CONVERSION_BIAS + 0.8 * self._taste[user, kind]
        logit = logit - 4.0 * (self.discount(slot, generation) - 0.3)
        logit = logit + 0.5 * self._normal(2, slot, generation)
        probability: Floats = 1 / (1 + np.exp(-logit))
        return probability

    def item_id(self, slot: Ints, generation: Ints) -> list[str]:
        """Names such as `c017-2948123`: slot and generation."""
        pairs = zip(slot.tolist(), generation.tolist(), strict=True)
        return [f"c{number:03d}-{successor}" for number, successor in pairs]

    def delays_us(self, rng: np.random.Generator, count: int, window_us: int) -> Ints:
        """Engagement delays from the stated mixture, cut just inside the attribution window."""
        return _drawn_delays(rng, self.config.delays, count, window_us)

    def conversion_delays_us(self, rng: np.random.Generator, count: int, window_us: int) -> Ints:
        """The same for conversions, from their click."""
        return _drawn_delays(rng, self.config.conversion_delays, count, window_us)

    def _uniform(self, stream: int, slot: Ints, generation: Ints) -> Floats:
        """Counter-based uniforms (splitmix64), so that a coupon's traits need no state."""
        start = (self.config.seed * 1_000_003 + stream * 7_919) & 0xFFFF_FFFF
        mixed: NDArray[np.uint64] = (slot.astype(np.uint64) << np.uint64(40)) + generation.astype(
            np.uint64
        )
        mixed = mixed + np.uint64(start * 0x9E3779B9)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed = mixed ^ (mixed >> np.uint64(31))
        uniform: Floats = (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)
        return uniform

    def _normal(self, stream: int, slot: Ints, generation: Ints) -> Floats:
        """Standard normals by Box-Muller from two uniform streams."""
        radius = np.sqrt(-2 * np.log(1 - self._uniform(stream, slot, generation)))
        angle = 2 * np.pi * self._uniform(stream + 1, slot, generation)
        normal: Floats = radius * np.cos(angle)
        return normal


def _drawn_delays(
    rng: np.random.Generator,
    mixture: tuple[tuple[float, float, float], ...],
    count: int,
    window_us: int,
) -> Ints:
    share, median, sigma = np.array(mixture).T
    part = rng.choice(len(share), count, p=share / share.sum())
    drawn = median[part] * np.exp(sigma[part] * rng.normal(size=count)) * SECOND_US
    delay: Ints = np.minimum(drawn.astype(np.int64), window_us - SECOND_US)
    return delay


def history(spec: LineSpec, config: SimulatorConfig, end_us: int) -> pa.Table:
    """Events of the `history_s` seconds before `end_us` under a random ranking policy.

    Returns `event_schema(spec)` rows in arrival order, every `arrival_at` < `end_us`. The same
    config and `end_us` give the same bytes. Engagements that would arrive after the end are
    missing, as they would be for anyone who looks at that moment.
    """
    require_campaign_columns(spec)
    world, rng = World(config), np.random.default_rng([config.seed, 1])
    length_us = config.history_s * SECOND_US
    requests = rng.poisson(config.requests_per_s * config.history_s)
    asked_us = np.sort(rng.integers(end_us - length_us, end_us, requests))
    users = rng.choice(config.users, requests, p=world.activity)
    shown = rng.integers(config.shown[0], config.shown[1] + 1, requests)
    ranking = np.argsort(rng.random((requests, config.coupons)), axis=1)[:, : config.shown[1]]
    request, position = np.nonzero(np.arange(config.shown[1]) < shown[:, None])
    slot, user, event_us = ranking[request, position], users[request], asked_us[request]
    clicked = rng.random(len(slot)) < world.p_click(user, slot, position, event_us)
    generation = world.generation(slot, event_us)
    ids = [f"h{r:06d}:{p}" for r, p in zip(request.tolist(), position.tolist(), strict=True)]
    impressions = {
        "impression_id": np.array(ids, dtype=object),
        "request_id": np.array([name.split(":")[0] for name in ids], dtype=object),
        "user_id": np.array([f"u{number:04d}" for number in user.tolist()], dtype=object),
        "item_id": np.array(world.item_id(slot, generation), dtype=object),
        "category": np.array(CATEGORIES, dtype=object)[world.slot_category[slot]],
        "discount": world.discount(slot, generation),
        "position": position,
    }
    took = np.flatnonzero(clicked)
    delay = world.delays_us(rng, len(took), spec.label.attribution_window)
    bought, bought_us = _conversions(spec, world, (user, slot, event_us), (took, delay))
    row = np.concatenate([np.arange(len(slot)), took, bought])
    kind = np.repeat(np.arange(3), [len(slot), len(took), len(bought)])
    at_us = np.concatenate([event_us, event_us[took] + delay, bought_us])
    lag_us = (rng.exponential(0.03, requests) * SECOND_US).astype(np.int64)[request[row]] + 1_000
    late = rng.random(len(row)) < config.reordered
    arrival = at_us + lag_us + late * rng.integers(SECOND_US, 5 * SECOND_US, len(row))
    twice = np.flatnonzero(rng.random(len(row)) < config.duplicated)
    again = arrival[twice] + rng.integers(50_000, 3 * SECOND_US, len(twice))
    pick = np.concatenate([np.arange(len(row)), twice])
    arrival = np.concatenate([arrival, again])
    order = np.argsort(arrival, kind="stable")
    order = order[arrival[order] < end_us]
    chosen = pick[order]
    return _event_table(
        spec, impressions, (row[chosen], kind[chosen], at_us[chosen], arrival[order])
    )


def _conversions(
    spec: LineSpec, world: World, shown: tuple[Ints, Ints, Ints], clicks: tuple[Ints, Ints]
) -> tuple[Ints, Ints]:
    """Which impressions convert, and when (µs); draws of their own, so that clicks stay the same.

    shown: user, slot and time of each impression; clicks: impression and delay of each click.
    """
    user, slot, event_us = shown
    took, delay = clicks
    if spec.label.conversion is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    rng = np.random.default_rng([world.config.seed, 2])
    likely = world.p_conversion(user[took], slot[took], event_us[took])
    buys = rng.random(len(took)) < likely
    window_us = spec.label.conversion.attribution_window
    after = world.conversion_delays_us(rng, int(buys.sum()), window_us)
    return took[buys], event_us[took[buys]] + delay[buys] + after


def _event_table(
    spec: LineSpec,
    impressions: dict[str, NDArray[np.object_] | Floats | Ints],
    rows: tuple[Ints, Ints, Ints, Ints],
) -> pa.Table:
    """Engagements carry the ids and their times; only impressions carry the declared columns.

    `rows`: index of the impression, which of `spec.label.events` it is, event and arrival times
    (µs).
    """
    row, kind, event_us, arrival_us = rows
    names = np.array(spec.label.events, dtype=object)
    schema = event_schema(spec)
    columns: dict[str, pa.Array] = {
        "event": pa.array(names[kind].tolist()),
        "event_at": pa.array(event_us).cast(TIME),
        "arrival_at": pa.array(arrival_us).cast(TIME),
        "value": pa.array(np.ones(len(row), dtype=np.int64)),
    }
    for field in schema:
        if field.name in ("impression_id", "request_id"):
            columns[field.name] = pa.array(impressions[field.name][row].tolist(), pa.string())
        elif field.name in impressions:
            values = impressions[field.name][row]
            columns[field.name] = pa.array(values.tolist(), field.type, mask=kind > 0)
        elif field.name not in columns:
            columns[field.name] = pa.nulls(len(row), field.type)
    return pa.table([columns[name] for name in schema.names], schema=schema)
