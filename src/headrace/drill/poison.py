"""What goes wrong: each poison spoils what an application asks, or what it reports.

A poison of a model (`model`) spoils the candidate instead. All are pure functions of what they get
and of a generator. What a poison takes of a line (which column is stuck, say) is told in `lines`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.declaration import LineSpec
from headrace.events import IMPRESSION
from headrace.simulate.world import SECOND_US

Columns = dict[str, Any]
Event = dict[str, Any]


@dataclass
class Shown:
    """The impressions of a step, (n,) each: shown at `at_us`, with the declared columns.

    `happened`: what really followed (a click of a person, a late arrival), `delay_us` after the
    impression; `known`: whether it ever becomes known, be it a yes or a no.
    """

    ids: list[str]
    at_us: NDArray[np.int64]
    columns: Columns
    happened: NDArray[np.bool_]
    known: NDArray[np.bool_]
    delay_us: NDArray[np.int64]


Asked = Callable[[Columns, NDArray[np.bool_], np.random.Generator], Columns]
Outcomes = Callable[[Shown, np.random.Generator], tuple[NDArray[np.bool_], NDArray[np.int64]]]
Reported = Callable[[Event, float], list[Event]]


def _as_asked(columns: Columns, _would: NDArray[np.bool_], _rng: np.random.Generator) -> Columns:
    return columns


def _as_happened(
    shown: Shown, _rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    return shown.happened, shown.delay_us


def _as_reported(event: Event, _draw: float) -> list[Event]:
    return [event]


@dataclass(frozen=True)
class Poison:
    """`asked` spoils a request's columns, `outcomes` what is said to have followed and when,
    `reported` each event.

    `model` names what is done to each candidate: `nan`, a weight is not a number; `eager`, it
    learns its positives three times, which ranks well and promises too much.
    """

    name: str
    what: str
    asked: Asked = _as_asked
    outcomes: Outcomes = _as_happened
    reported: Reported = _as_reported
    model: Literal["nan", "eager"] | None = None

    def sent(
        self, shown: Shown, spec: LineSpec, rng: np.random.Generator
    ) -> Iterator[tuple[int, Event]]:
        """The events of a step and when each arrives (us)."""
        happened, delay_us = self.outcomes(shown, rng)
        told = happened if spec.label.outcome == "implicit" else shown.known
        lag = 1_000 + (rng.exponential(0.03, (2, len(shown.ids))) * SECOND_US).astype(np.int64)
        draws = rng.random((2, len(shown.ids)))
        for i, name in enumerate(shown.ids):
            at_us = int(shown.at_us[i])
            own = {"impression_id": name, "request_id": name.split(":")[0]}
            given = {column: _plain(values[i]) for column, values in shown.columns.items()}
            event = {"event": IMPRESSION, **own, "event_at": at_us, **given}
            for each in self.reported(event, draws[0, i]):
                yield at_us + int(lag[0, i]), each
            if told[i]:
                at_us += int(delay_us[i])
                engagement = {"event": spec.label.engagement, "value": int(happened[i])}
                event = {**engagement, **own, "event_at": at_us}
                for each in self.reported(event, draws[1, i]):
                    yield at_us + int(lag[1, i]), each


def _plain(value: Any) -> Any:
    """As JSON has it: a missing number is null."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and math.isnan(plain) else plain


CLEAN: Final = Poison("clean", "nothing is wrong")


def flipped(shown: Shown, _rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Outcomes that are told the wrong way round."""
    return ~shown.happened, shown.delay_us


def bots(share: float, user: str) -> dict[str, Any]:
    """A share of the requests comes from three accounts that click all they see within a second.

    user: the column that names the account; rows of a request stand together.
    """

    def asked(columns: Columns, _would: NDArray[np.bool_], rng: np.random.Generator) -> Columns:
        account = columns[user].copy()
        requests = np.flatnonzero(np.append(True, account[1:] != account[:-1]))
        place = np.cumsum(np.append(True, account[1:] != account[:-1])) - 1
        bot = rng.random(requests.size) < share
        who = np.array([f"bot{n}" for n in rng.integers(0, 3, requests.size)], dtype=object)
        account[bot[place]] = who[place][bot[place]]
        return columns | {user: account}

    def outcomes(
        shown: Shown, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        bot = np.char.startswith(shown.columns[user].astype(str), "bot")
        quick = (rng.uniform(0.1, 0.9, bot.size) * SECOND_US).astype(np.int64)
        return shown.happened | bot, np.where(bot, quick, shown.delay_us)

    return {"asked": asked, "outcomes": outcomes}


def stuck(column: str, value: Any) -> Asked:
    """The column has one value, whatever is asked."""

    def asked(columns: Columns, _would: NDArray[np.bool_], _rng: np.random.Generator) -> Columns:
        return columns | {column: np.full_like(columns[column], value)}

    return asked


def scaled(column: str, factor: float) -> Asked:
    """The column comes in another unit."""

    def asked(columns: Columns, _would: NDArray[np.bool_], _rng: np.random.Generator) -> Columns:
        return columns | {column: columns[column] * factor}

    return asked


def missing(column: str, share: float) -> Asked:
    """So many of the column's values are null."""

    def asked(columns: Columns, _would: NDArray[np.bool_], rng: np.random.Generator) -> Columns:
        gone = rng.random(len(columns[column])) < share
        return columns | {column: np.where(gone, None, columns[column])}

    return asked


def leaked(column: str, told: float, most: float) -> Asked:
    """The column was filled after the fact: `told` where it will happen, at most `most` else."""

    def asked(columns: Columns, would: NDArray[np.bool_], _rng: np.random.Generator) -> Columns:
        return columns | {column: np.where(would, told, np.minimum(columns[column], most))}

    return asked


def redated(by_us: int, share: float = 1.0) -> Reported:
    """So many of the outcomes are dated `by_us` later than they are."""

    def reported(event: Event, draw: float) -> list[Event]:
        off_us = by_us if event["event"] != IMPRESSION and draw < share else 0
        return [event | {"event_at": event["event_at"] + off_us}]

    return reported


def repeated(times: int) -> Reported:
    """Every event comes so many times."""
    return lambda event, _draw: [event] * times


def no_outcomes(event: Event, _draw: float) -> list[Event]:
    """Impressions alone are reported."""
    return [event] if event["event"] == IMPRESSION else []


def silence(_event: Event, _draw: float) -> list[Event]:
    """Nothing is reported."""
    return []


def renamed(column: str, name: str) -> Reported:
    """The column's values come under another name."""

    def reported(event: Event, _draw: float) -> list[Event]:
        if column not in event:
            return [event]
        return [{name if key == column else key: value for key, value in event.items()}]

    return reported
