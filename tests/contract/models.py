"""Models of the kinds of `model_kinds`, whose graphs a process builds once."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from headrace.model import Model
from headrace.model.delta import State
from tests.contract.model_kinds import spec_of, stream

# every kind of table and of network, for another process
ELSEWHERE = ("wide", "dcn", "dynamic", "two tasks")


def model_of(family: str, **changes: Any) -> Model:
    return Model(spec_of(family, **changes), seed=7, conversion=family.startswith("two tasks"))


@cache
def traced(family: str, use: str) -> tuple[Model, State]:
    model = model_of(family)
    return model, model.state()


def fresh(family: str, use: str) -> Model:
    """A model put back to its first state: building a graph costs more than a test does."""
    model, state = traced(family, use)
    model.load_state(state)
    return model


def digest_of(family: str) -> str:
    model = fresh(family, "first")
    model.learn(stream(150))
    state = model.state()
    bytes_ = b"".join(state[name].tobytes() for name in sorted(state))
    return hashlib.sha256(bytes_ + model.predict(stream(50)).tobytes()).hexdigest()
