"""Live traffic of the simulated coupon campaign: the loop closes over HTTP.

About six times a second a user asks the scoring server for a ranking of twelve coupons, is shown
the best few (with a little exploration), and the impressions and, after their delays, the clicks go
to the collector. Errors of either service are counted and never end the run. A `PoisonSwitch`
spoils the traffic while it is on.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import httpx
import numpy as np

from headrace.declaration import LineSpec
from headrace.events import IMPRESSION
from headrace.settings import Settings
from headrace.simulate.outbox import Event, Outbox, now_us
from headrace.simulate.poison import FLIPPED, PoisonSwitch, copies, spoil_candidate
from headrace.simulate.truth import TruthLog
from headrace.simulate.world import (
    CATEGORIES,
    SECOND_US,
    Floats,
    Ints,
    SimulatorConfig,
    World,
    history,
    require_campaign_columns,
)

__all__ = ["SimulatorConfig", "World", "history", "run"]

FLUSH_US: Final = 5 * SECOND_US
BACKLOG_US: Final = 2 * SECOND_US


def run(
    settings: Settings, spec: LineSpec, config: SimulatorConfig, stop: threading.Event
) -> dict[str, Any]:
    """Keep traffic on until `stop`; returns the summary that `truth/summary.json` holds."""
    require_campaign_columns(spec)
    started_us = now_us()
    truth = TruthLog(settings.line_home(spec.line) / "truth", str(started_us))
    outbox = Outbox(f"{settings.collector_url}/v1/events", truth, settings.collect_headers)
    traffic = Traffic(settings, spec, config, outbox, truth)
    cpu_before = time.thread_time()
    outbox.start()
    try:
        traffic.until(stop)
    finally:
        outbox.close()
        summary = {
            "started_us": started_us,
            "ended_us": now_us(),
            "cpu_s": round(time.thread_time() - cpu_before + outbox.cpu_s, 3),
            "seed": config.seed,
            "shock_at_us": config.shock_at_us,
            "shocked_category": CATEGORIES[traffic.world.shocked],
            "requests": dict(traffic.counts),
            "events": dict(outbox.counts),
        }
        truth.finish(summary)
    return summary


@dataclass(frozen=True)
class Asked:
    """One request: the user's number, the candidates' slots and what is said of them."""

    request_id: str
    user: int
    slot: Ints
    candidates: list[dict[str, Any]]

    @property
    def user_id(self) -> str:
        return f"u{self.user:04d}"


class Traffic:
    """The requesting side: who asks, what is shown, who clicks."""

    def __init__(
        self,
        settings: Settings,
        spec: LineSpec,
        config: SimulatorConfig,
        outbox: Outbox,
        truth: TruthLog,
    ) -> None:
        self.world, self.counts = World(config), Counter[str]()
        self._config, self._spec, self._outbox, self._truth = config, spec, outbox, truth
        self._url = f"{settings.server_url}/v1/score"
        self._headers = settings.score_headers
        self._switch = PoisonSwitch(settings, spec.line)
        self._poison: str | None = None
        self._rng = np.random.default_rng([config.seed, 2])
        self._run = f"s{now_us():x}"

    def until(self, stop: threading.Event) -> None:
        """Ask at the moments of a Poisson process; after a stall, at most 2 s are caught up."""
        due_us, flush_us = now_us(), now_us() + FLUSH_US
        with httpx.Client(timeout=5.0, trust_env=False) as client:
            while not stop.is_set():
                at_us = now_us()
                if at_us < due_us:
                    stop.wait((due_us - at_us) / SECOND_US)
                    continue
                if at_us >= flush_us:
                    self._truth.flush()
                    flush_us = at_us + FLUSH_US
                self.ask(client)
                gap = self._rng.exponential(1 / self._config.requests_per_s)
                due_us = max(due_us, at_us - BACKLOG_US) + int(gap * SECOND_US)

    def ask(self, client: httpx.Client) -> None:
        """One request: choose a user and candidates, score them, show the best."""
        config, rng, at_us = self._config, self._rng, now_us()
        self._poison = self._switch.read()
        self.counts["asked"] += 1
        request_id = f"{self._run}-{self.counts['asked']:06d}"
        user = int(rng.choice(config.users, p=self.world.activity))
        slot = rng.choice(config.coupons, config.candidates, replace=False)
        generation = self.world.generation(slot, np.full(len(slot), at_us))
        asked = Asked(request_id, user, slot, self._describe(slot, generation))
        answer = self._score(client, asked)
        if answer is None:
            return
        scores = np.clip([float(row["score"]) for row in answer["scores"]], 1e-6, 1 - 1e-6)
        wish = np.log(scores / (1 - scores)) + rng.normal(0, config.exploration, len(scores))
        shown = int(rng.integers(config.shown[0], config.shown[1] + 1))
        names = [str(row["impression_id"]) for row in answer["scores"]]
        position = np.full(len(scores), -1, dtype=np.int64)
        position[np.argsort(-wish, kind="stable")[:shown]] = np.arange(shown)
        self._show(asked, names, position)

    def _describe(self, slot: Ints, generation: Ints) -> list[dict[str, Any]]:
        names = self.world.item_id(slot, generation)
        kinds = self.world.slot_category[slot].tolist()
        discounts = self.world.discount(slot, generation).tolist()
        told = [
            {"item_id": name, "category": CATEGORIES[kind], "discount": discount}
            for name, kind, discount in zip(names, kinds, discounts, strict=True)
        ]
        return [spoil_candidate(candidate, self._poison) for candidate in told]

    def _score(self, client: httpx.Client, asked: Asked) -> dict[str, Any] | None:
        """Call the server; None after an error, which is counted and logged with the request."""
        body = {
            "request_id": asked.request_id,
            "context": {"user_id": asked.user_id},
            "candidates": asked.candidates,
        }
        answer: dict[str, Any] | None = None
        started_at, began, status = now_us(), time.perf_counter(), 0
        try:
            response = client.post(self._url, json=body, headers=self._headers)
            status = response.status_code
            answer = response.json() if status == 200 else None
        except (httpx.HTTPError, ValueError) as problem:
            self.counts[f"error_{type(problem).__name__}"] += 1
        if answer is not None and len(answer["scores"]) != len(asked.candidates):
            answer, status = None, 502
        self.counts["answered" if answer is not None else f"status_{status}"] += 1
        self._truth.add(
            "requests",
            {
                "request_id": asked.request_id,
                "started_at": started_at,
                "latency_ms": 1000 * (time.perf_counter() - began),
                "status": status,
                "version": answer["version"] if answer else None,
                "staleness_s": answer.get("staleness_s") if answer else None,
            },
        )
        return answer

    def _show(self, asked: Asked, names: list[str], position: Ints) -> None:
        """Draw the clicks, hand the events to the outbox and the truth to its log."""
        at_us, shown, slot = now_us(), position >= 0, asked.slot
        who, when = np.full(len(slot), asked.user), np.full(len(slot), at_us)
        p_item: Floats = self.world.p_item(who, slot, when)
        p_click = self.world.p_click(who, slot, np.maximum(position, 0), when)
        clicked = (self._rng.random(len(slot)) < p_click) & shown
        engaged = (~clicked & shown) if self._poison == FLIPPED else clicked
        window_us = self._spec.label.attribution_window
        delay = self.world.delays_us(self._rng, len(slot), window_us)
        bought = self._bought(who, slot, when)
        for i in np.flatnonzero(shown)[np.argsort(position[shown])].tolist():
            ids = {"impression_id": names[i], "request_id": asked.request_id}
            self._send(
                {"event": IMPRESSION, **ids, "event_at": at_us, "user_id": asked.user_id}
                | asked.candidates[i]
                | {"position": int(position[i])},
                at_us,
            )
            if engaged[i]:
                click_us = at_us + int(delay[i])
                click = {"event": self._spec.label.engagement, **ids, "event_at": click_us}
                self._send(click | {"value": 1}, click_us)
                if bought[i] >= 0:
                    assert self._spec.label.conversion is not None
                    name, buy_us = self._spec.label.conversion.engagement, click_us + int(bought[i])
                    self._send({"event": name, **ids, "event_at": buy_us, "value": 1}, buy_us)
        self._truth.add(
            "candidates",
            *(
                {
                    "impression_id": names[i],
                    "request_id": asked.request_id,
                    "position": int(position[i]),
                    "p_item": float(p_item[i]),
                    "p_click": float(p_click[i]) if shown[i] else None,
                    "clicked": bool(clicked[i]),
                    "poisoned": self._poison is not None,
                    "sent_at": at_us,
                }
                for i in range(len(slot))
            ),
        )

    def _bought(self, user: Ints, slot: Ints, at_us: Ints) -> Ints:
        """How long after its click each is redeemed (µs), -1 where it is not."""
        if self._spec.label.conversion is None:
            return np.full(len(slot), -1)
        window_us = self._spec.label.conversion.attribution_window
        delay = self.world.conversion_delays_us(self._rng, len(slot), window_us)
        likely = self.world.p_conversion(user, slot, at_us)
        return np.where(self._rng.random(len(slot)) < likely, delay, -1)

    def _send(self, event: Event, due_us: int) -> None:
        """Post at `due_us`; a few late (out of order), a few twice, a few with a spoiled copy."""
        late, twice, spoiled = self._rng.random(3)
        if late < self._config.reordered:
            due_us += int(self._rng.integers(SECOND_US, 5 * SECOND_US))
        for _ in range(copies(self._poison)):
            self._outbox.put(due_us, event)
        if twice < self._config.duplicated:
            self._outbox.put(due_us + int(self._rng.integers(50_000, 3 * SECOND_US)), event)
        if spoiled < self._config.malformed:
            self._outbox.put(due_us, spoil(event, int(self._rng.integers(4))), malformed=True)


def spoil(event: Event, kind: int) -> Event:
    """A copy of an event that no collector may accept."""
    if kind == 0:
        return {key: value for key, value in event.items() if key != "impression_id"}
    if kind == 1:
        return event | {"event_at": "yesterday"}
    if kind == 2:
        return event | {"event": "teleport"}
    return event | {"value": "many"}
