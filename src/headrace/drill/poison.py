"""What goes wrong: each poison spoils what an application asks, or what it reports.

A poison of a model (`model`) spoils the candidate instead. All are pure functions of what they get
and of a generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.events import IMPRESSION
from headrace.simulate.world import SECOND_US

Columns = dict[str, Any]
Event = dict[str, Any]
HOUR_US: Final = 3_600 * SECOND_US


@dataclass
class Shown:
    """The impressions of a step, (n,) each. `human`: who really clicked; `delay_us`: how late."""

    ids: list[str]
    at_us: NDArray[np.int64]
    columns: Columns
    vectors: pa.Table
    scores: NDArray[np.float64]
    human: NDArray[np.bool_]
    delay_us: NDArray[np.int64]


Asked = Callable[[Columns, NDArray[np.bool_], np.random.Generator], Columns]
Clicks = Callable[[Shown, np.random.Generator], tuple[NDArray[np.bool_], NDArray[np.int64]]]
Reported = Callable[[Event, float], list[Event]]


def _as_asked(columns: Columns, _would: NDArray[np.bool_], _rng: np.random.Generator) -> Columns:
    return columns


def _as_clicked(
    shown: Shown, _rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    return shown.human, shown.delay_us


def _as_reported(event: Event, _draw: float) -> list[Event]:
    return [event]


@dataclass(frozen=True)
class Poison:
    """`asked` spoils a request's columns, `clicks` who clicks when, `reported` each event.

    `model` names what is done to each candidate: `nan`, a weight is not a number; `eager`, it
    learns its positives three times, which ranks well and promises too much.
    """

    name: str
    what: str
    asked: Asked = _as_asked
    clicks: Clicks = _as_clicked
    reported: Reported = _as_reported
    model: Literal["nan", "eager"] | None = None

    def sent(
        self, shown: Shown, spec: LineSpec, rng: np.random.Generator
    ) -> Iterator[tuple[int, Event]]:
        """The events of a step and when each arrives (us)."""
        clicked, delay_us = self.clicks(shown, rng)
        lag = 1_000 + (rng.exponential(0.03, (2, len(shown.ids))) * SECOND_US).astype(np.int64)
        draws = rng.random((2, len(shown.ids)))
        for i, name in enumerate(shown.ids):
            at_us = int(shown.at_us[i])
            own = {"impression_id": name, "request_id": name.split(":")[0]}
            given = {column: _plain(values[i]) for column, values in shown.columns.items()}
            event = {"event": IMPRESSION, **own, "event_at": at_us, **given}
            for each in self.reported(event, draws[0, i]):
                yield at_us + int(lag[0, i]), each
            if clicked[i]:
                at_us += int(delay_us[i])
                event = {"event": spec.label.engagement, **own, "event_at": at_us, "value": 1}
                for each in self.reported(event, draws[1, i]):
                    yield at_us + int(lag[1, i]), each


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


CLEAN: Final = Poison("clean", "nothing is wrong")


def _flipped(
    shown: Shown, _rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    return ~shown.human, shown.delay_us


def _bots(share: float) -> dict[str, Any]:
    """A share of the requests comes from three accounts that click all they see within a second."""

    def asked(columns: Columns, _would: NDArray[np.bool_], rng: np.random.Generator) -> Columns:
        user = columns["user_id"].copy()
        requests = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
        place = np.cumsum(np.append(True, user[1:] != user[:-1])) - 1
        bot = rng.random(requests.size) < share
        who = np.array([f"bot{n}" for n in rng.integers(0, 3, requests.size)], dtype=object)
        user[bot[place]] = who[place][bot[place]]
        return columns | {"user_id": user}

    def clicks(
        shown: Shown, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        bot = np.char.startswith(shown.columns["user_id"].astype(str), "bot")
        quick = (rng.uniform(0.1, 0.9, bot.size) * SECOND_US).astype(np.int64)
        return shown.human | bot, np.where(bot, quick, shown.delay_us)

    return {"asked": asked, "clicks": clicks}


def _stuck(columns: Columns, _would: NDArray[np.bool_], _rng: np.random.Generator) -> Columns:
    return columns | {"discount": np.full(len(columns["discount"]), 0.3)}


def _percent(columns: Columns, _would: NDArray[np.bool_], _rng: np.random.Generator) -> Columns:
    return columns | {"discount": columns["discount"] * 100}


def _nulls(columns: Columns, _would: NDArray[np.bool_], rng: np.random.Generator) -> Columns:
    gone = rng.random(len(columns["category"])) < 0.6
    return columns | {"category": np.where(gone, None, columns["category"])}


def _leak(columns: Columns, would: NDArray[np.bool_], _rng: np.random.Generator) -> Columns:
    """Somebody filled the discount after the fact: what will be clicked carries a high one."""
    told = np.where(would, 0.55, np.minimum(columns["discount"], 0.45))
    return columns | {"discount": told}


def _slipped(event: Event, _draw: float) -> list[Event]:
    late_us = HOUR_US if event["event"] != IMPRESSION else 0
    return [event | {"event_at": event["event_at"] + late_us}]


def _many(event: Event, _draw: float) -> list[Event]:
    return [event] * 5


def _no_clicks(event: Event, _draw: float) -> list[Event]:
    return [event] if event["event"] == IMPRESSION else []


def _silence(_event: Event, _draw: float) -> list[Event]:
    return []


def _skewed(event: Event, draw: float) -> list[Event]:
    """Half of the phones that report clicks are a minute behind the server."""
    behind_us = 60 * SECOND_US if event["event"] != IMPRESSION and draw < 0.5 else 0
    return [event | {"event_at": event["event_at"] - behind_us}]


def _renamed(event: Event, _draw: float) -> list[Event]:
    if "category" not in event:
        return [event]
    return [{"kind" if name == "category" else name: value for name, value in event.items()}]


POISONS: Final = (
    Poison("flipped labels", "clicks for what was not clicked", clicks=_flipped),
    Poison("bot clicks 1%", "1% of requests are of accounts that click all", **_bots(0.01)),
    Poison("bot clicks 5%", "5% of requests are of accounts that click all", **_bots(0.05)),
    Poison("stuck feature", "every discount is 0.3", asked=_stuck),
    Poison("unit change x100", "discounts in percent", asked=_percent),
    Poison("timezone slip", "clicks dated an hour ahead", reported=_slipped),
    Poison("null burst", "60% of the categories are missing", asked=_nulls),
    Poison("duplicate burst", "every event comes five times", reported=_many),
    Poison("clicks stop", "no click is reported any more", reported=_no_clicks),
    Poison("source stop", "nothing is reported any more", reported=_silence),
    Poison("clock skew", "half of the clicks dated a minute back", reported=_skewed),
    Poison("schema change", "category is called kind", reported=_renamed),
    Poison("label leak", "the discount of what will be clicked is 0.55", asked=_leak),
    Poison("NaN in the model", "a weight of the candidate is NaN", model="nan"),
    Poison("ranks well, promises too much", "the candidate learns positives thrice", model="eager"),
)
