"""What the demo does to the running loop on purpose: poison one window, roll back and forward.

Each drill writes what it did, and when, to `truth/drills.json`, so that the report can say how the
loop took it. The drills only use what an operator has: files, the line store, the HTTP API.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from headrace import cycle
from headrace.atomic import write_json
from headrace.declaration import LineSpec
from headrace.errors import ConflictError, EnvironmentFault
from headrace.line import Champion, LineStore
from headrace.sample import Quarantine, read_tick
from headrace.settings import Settings
from headrace.simulate.outbox import now_us
from headrace.simulate.poison import FLIPPED, PoisonSwitch
from headrace.simulate.truth import read_json

SECOND_US: Final = 1_000_000
POISON_US: Final = 20 * SECOND_US

Say = Callable[[str], None]


@dataclass
class Drills:
    """Steps through the drills as the loop allows; call `step` a few times a second.

    The poison comes after the second promotion, the rollback after the first promotion since
    the poison was refused. Airflow keeps its schedule all the while.
    """

    settings: Settings
    spec: LineSpec
    started_us: int
    say: Say
    record: dict[str, Any] = field(default_factory=dict)
    _poison_end_us: int = 0

    @property
    def store(self) -> LineStore:
        return LineStore(self.settings.line_store_url(self.spec.line), self.spec.line)

    @property
    def done(self) -> bool:
        """Whether every drill has run and the loop has promoted again after the last."""
        if "rollback" not in self.record:
            return False
        return any(c.at_us > self.record["rollback"]["forward_us"] for c in self.promotions())

    def promotions(self) -> list[Champion]:
        """Promotions since traffic began."""
        return [
            champion
            for champion in self.store.history()
            if champion.action == "promote" and champion.at_us >= self.started_us
        ]

    def step(self) -> None:
        """Do what is due now."""
        if "poison" not in self.record:
            self._arm_poison()
        elif self._poison_end_us and now_us() >= self._poison_end_us:
            self.end_poison()
        elif not self._poison_end_us and "rollback" not in self.record:
            later = [c for c in self.promotions() if c.at_us > self.record["poison"]["to_us"]]
            if later and self._refused_since_poison():
                self.roll_back_and_forward()

    def end_poison(self) -> None:
        """Send true labels again; harmless when nothing is poisoned."""
        PoisonSwitch(self.settings, self.spec.line).off()
        if self._poison_end_us:
            self._poison_end_us = 0
            self._note("poison", {**self.record["poison"], "to_us": now_us()})
            self.say("labels are true again")

    def roll_back_and_forward(self) -> None:
        """Point the line at the version before, see it answer, and go forward again."""
        store, url = self.store, f"{self.settings.server_url}/v1/score"
        newest = store.champion()
        assert newest is not None
        headers = self.settings.score_headers
        with httpx.Client(timeout=5.0, trust_env=False, headers=headers) as client:
            try:
                at_us, began = now_us(), time.perf_counter()
                back = store.rollback(reason="drill: roll back")
                answered = _until_version(client, url, self._question(), back.version)
                back_ms = 1000 * (answered - began)
                forward_us, began = now_us(), time.perf_counter()
                store.advance(back, newest.version, "forward", "drill: forward again")
                answered = _until_version(client, url, self._question(), newest.version)
            except ConflictError as problem:  # a cycle promoted in between; try at the next one
                self.say(f"rollback drill postponed: {problem}")
                return
        forward_ms = 1000 * (answered - began)
        self._note(
            "rollback",
            {
                "at_us": at_us,
                "ms": round(back_ms, 1),
                "from": newest.version,
                "to": back.version,
                "forward_us": forward_us,
                "forward_ms": round(forward_ms, 1),
            },
        )
        self.say(f"rolled back to {back.version} in {back_ms:.0f} ms, forward in {forward_ms:.0f}")

    def _arm_poison(self) -> None:
        """Flip labels for a while once two cycles were promoted."""
        if len(self.promotions()) < 2:
            return
        PoisonSwitch(self.settings, self.spec.line).on(FLIPPED)
        at_us = now_us()
        self._poison_end_us = at_us + POISON_US
        self._note("poison", {"from_us": at_us, "to_us": self._poison_end_us})
        self.say(f"labels are flipped for {POISON_US / 1e6:.0f} s")

    def _refused_since_poison(self) -> bool:
        """Whether a whole window was refused, or a part of one went to quarantine."""
        began_us, home = self.record["poison"]["from_us"], self.settings.line_home(self.spec.line)
        refused = [q["to"] for q in Quarantine(home).intervals()]
        return any(read_tick(home, tick - 1).at_us > began_us for tick in refused) or any(
            record.outcome == "rejected" and record.ended_us > began_us
            for record in cycle.records(self.settings, self.spec)
        )

    def _question(self) -> dict[str, Any]:
        """A harmless request of one candidate; it is logged, but never shown to anyone."""
        texts = [name for name, kind in self.spec.columns.items() if kind == "string"]
        return {"context": {}, "candidates": [dict.fromkeys(texts, "drill")]}

    def _note(self, name: str, what: dict[str, Any]) -> None:
        self.record[name] = what
        path = self.settings.line_home(self.spec.line) / "truth" / "drills.json"
        write_json(path, {**read_json(path), name: what})


def _until_version(
    client: httpx.Client, url: str, question: dict[str, Any], version: str, timeout_s: float = 20.0
) -> float:
    """Ask until `version` answers; returns that moment of `time.perf_counter`."""
    deadline = time.perf_counter() + timeout_s
    while time.perf_counter() < deadline:
        answer = client.post(url, json=question)
        if answer.status_code == 200 and answer.json()["version"] == version:
            return time.perf_counter()
        time.sleep(0.01)
    raise EnvironmentFault(
        f"the scoring server did not answer with {version} within {timeout_s:.0f} s; "
        "look at serve.log"
    )
