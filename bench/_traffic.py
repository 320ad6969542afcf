"""Scoring requests, their impressions and clicks, sent to a running stack at a steady rate.

Every candidate is shown and its impression told at once; a click follows with a median of
`CLICK_DELAY_S`. While `poison` is on, clicks are sent for what was not clicked.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

import httpx
import numpy as np
from numpy.typing import NDArray

from bench._measure import SEED
from headrace.declaration import LineSpec
from headrace.settings import Settings
from headrace.simulate.world import CATEGORIES, SimulatorConfig, World

CANDIDATES: Final = 24
REQUESTS_A_S: Final = 8.0
SENDERS: Final = 3
CLICK_DELAY_S: Final = 2.0
Ints = NDArray[np.int64]


class Traffic:
    """Some senders beside each other, so that a slow answer does not slow the others down."""

    def __init__(self, settings: Settings, spec: LineSpec) -> None:
        self._senders = [Sender(settings, spec, number) for number in range(SENDERS)]

    def start(self) -> None:
        """Begin."""
        for sender in self._senders:
            sender.thread.start()

    def stop(self) -> None:
        """End; clicks that are not due yet are left out."""
        for sender in self._senders:
            sender.ended.set()
        for sender in self._senders:
            sender.thread.join()

    def poison(self, on: bool) -> None:
        """From now on send clicks for what was not clicked, or no longer."""
        for sender in self._senders:
            sender.poisoned = on

    @property
    def errors(self) -> list[str]:
        return [error for sender in self._senders for error in sender.errors]

    @property
    def events(self) -> int:
        return sum(sender.events for sender in self._senders)

    @property
    def latencies_ms(self) -> list[float]:
        return [each for sender in self._senders for each in sender.latencies_ms]


class Sender:
    """Requests, the impressions of all their candidates, and clicks after a delay."""

    def __init__(self, settings: Settings, spec: LineSpec, number: int) -> None:
        self._settings, self._spec = settings, spec
        self._world = World(SimulatorConfig(seed=SEED))
        self._rng = np.random.default_rng([SEED, number])
        self._clicks: list[tuple[int, dict[str, Any]]] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.poisoned = False
        self.errors: list[str] = []
        self.events = 0
        self.latencies_ms: list[float] = []

    def _run(self) -> None:
        due = time.monotonic()
        with httpx.Client(timeout=10.0, trust_env=False) as client:
            while not self.ended.wait(max(due - time.monotonic(), 0.0)):
                due = max(due + SENDERS / REQUESTS_A_S, time.monotonic() - 1.0)
                try:
                    self._turn(client)
                except (httpx.HTTPError, RuntimeError) as problem:
                    self.errors.append(f"{type(problem).__name__}: {problem}")

    def _turn(self, client: httpx.Client) -> None:
        user, slot, candidates, names = self._score(client)
        now_us = _now_us()
        who, when = np.full(len(slot), user), np.full(len(slot), now_us)
        clicked = self._rng.random(len(slot)) < 0.5 * self._world.p_item(who, slot, when)
        if self.poisoned:
            clicked = ~clicked
        delays = self._rng.lognormal(np.log(CLICK_DELAY_S), 0.5, len(slot)) * 1e6
        events = [
            {"event": "impression", "impression_id": name, "event_at": now_us, "position": place}
            | {"user_id": f"u{user:04d}", **candidate}
            for place, (name, candidate) in enumerate(zip(names, candidates, strict=True))
        ]
        for place in np.flatnonzero(clicked).tolist():
            at_us = now_us + int(delays[place])
            click = {"event": "click", "impression_id": names[place], "event_at": at_us, "value": 1}
            self._clicks.append((at_us, click))
        events += [event for at_us, event in self._clicks if at_us <= now_us]
        self._clicks = [each for each in self._clicks if each[0] > now_us]
        where, headers = f"{self._settings.collector_url}/v1/events", self._settings.collect_headers
        answer = client.post(where, json={"events": events}, headers=headers)
        if answer.status_code != 200 or answer.json()["malformed"]:
            raise RuntimeError(f"collector: {answer.status_code} {answer.text[:200]}")
        self.events += len(events)

    def _score(self, client: httpx.Client) -> tuple[int, Ints, list[dict[str, Any]], list[str]]:
        config = self._world.config
        user = int(self._rng.choice(config.users, p=self._world.activity))
        slot = self._rng.choice(config.coupons, CANDIDATES, replace=False)
        generation = self._world.generation(slot, np.full(CANDIDATES, _now_us()))
        kinds = self._world.slot_category[slot].tolist()
        candidates = [
            {"item_id": name, "category": CATEGORIES[kind], "discount": discount}
            for name, kind, discount in zip(
                self._world.item_id(slot, generation),
                kinds,
                self._world.discount(slot, generation).tolist(),
                strict=True,
            )
        ]
        began = time.perf_counter()
        answer = client.post(
            f"{self._settings.server_url}/v1/score",
            json={"context": {"user_id": f"u{user:04d}"}, "candidates": candidates},
        )
        if answer.status_code != 200:
            raise RuntimeError(f"server: {answer.status_code} {answer.text[:200]}")
        self.latencies_ms.append(1000 * (time.perf_counter() - began))
        return user, slot, candidates, [row["impression_id"] for row in answer.json()["scores"]]


def _now_us() -> int:
    return time.time_ns() // 1_000
