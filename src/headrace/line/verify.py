"""Whether every stored byte still is what was published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headrace.errors import HeadraceError, IntegrityError
from headrace.line import states
from headrace.line.store import LineStore
from headrace.line.version import Version
from headrace.model import delta
from headrace.model.delta import State, same_bits


@dataclass(frozen=True)
class Checked:
    """What was found of a version: sound, pruned (nothing to check) or damaged, and why."""

    version: str
    outcome: str
    reason: str = ""


def verify(store: LineStore) -> Iterator[Checked]:
    """Check all versions, oldest first: SHA-256 of each file, fingerprint of each state.

    A compacted version is checked both ways, and its base must equal its deltas bit for bit.
    Each delta is read once: a state is built on that of the parent where that one is at hand.
    """
    held: dict[str, State] = {}
    for name in store.published():
        try:
            version = store.get(name)
            if store.pruned_at(name):
                yield Checked(name, "pruned")
                continue
            state = _state(store, version, held.get(version.parent or ""))
            held = {k: v for k, v in held.items() if k == version.parent} | {name: state}
        except HeadraceError as problem:
            yield Checked(name, "damaged", str(problem))
        else:
            yield Checked(name, "sound")


def _state(store: LineStore, version: Version, parent: State | None) -> State:
    published, *bases = store.stored(version)
    if published.whole:
        return states.restore(store.files, [(version, published)])
    if parent is None and version.parent is not None:
        if bases and store.pruned_at(version.parent):  # its deltas lead nowhere any more
            return states.restore(store.files, [(version, bases[0])])
        parent = store.load(version.parent)[1]
    state = delta.apply(parent or {}, states.read(store.files, published))
    states.require_fingerprint(version, state)
    for base in bases:
        if not same_bits(states.read(store.files, base), state):
            raise IntegrityError(
                f"{version.version}: its base differs from its deltas; remove base.json and run "
                "`headrace line upkeep --once`"
            )
    return state
