"""Which versions keep their files, and the removal of the others in two steps.

A version that nothing needs is first marked (`pruned.json`), from when on nobody can promote it,
and loses its files on a later pass. So whoever read "not marked" just before has long moved the
champion, and the later pass sees that and takes the mark back. Manifests, evidence and verdicts
stay: the line's history is not pruned. Those of a learner, one a second, go after `keep_steps`, and
so do the generations of the champion that they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from headrace.declaration import DeliverySpec
from headrace.line.races import Races
from headrace.line.store import LineStore
from headrace.line.version import CYCLE, Version
from headrace.sealed import sealed

GRACE: Final = timedelta(seconds=60)
"""Between mark and removal; longer than any promotion takes."""
_STATE: Final = ".safetensors.zst"


@dataclass(frozen=True)
class Pruned:
    """What a pass did, by version: marked, taken back, and stripped of its files."""

    marked: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


@dataclass
class Known:
    """What a process that prunes again and again need not look at again.

    `stripped`: versions whose files are gone, and until when a learner's are kept (None: for
    good); `generation`: of the champion, before which nothing is left to forget.
    """

    stripped: dict[str, datetime | None] = field(default_factory=dict)
    generation: int = 1


def prune(
    store: LineStore, spec: DeliverySpec, now: datetime | None = None, known: Known | None = None
) -> Pruned:
    """One pass over the line's versions. Safe to repeat, to interrupt, and beside writers.

    With what is `known` from earlier passes its cost follows the versions that have files.
    """
    now = datetime.now(UTC) if now is None else now
    known = Known() if known is None else known
    found = _files(store, known)
    held = {v for v, files in found.items() if any(name.endswith(_STATE) for name in files)}
    published = {v: store.get(v) for v in held if "manifest.json" in found[v]}
    pinned = {v for v in published if "pin.json" in found[v]}
    kept = _kept(store, spec, published, pinned, now)
    pruned = Pruned()
    for version in sorted(held):
        path, marked = f"versions/{version}/pruned.json", "pruned.json" in found[version]
        if version not in published:  # of a publisher that is at work, or died
            if _claimed_before(store, version, now - timedelta(microseconds=spec.keep_rejected)):
                _strip(store, version, found[version], pruned)
        elif version in kept:
            if marked:
                store.files.remove(path)
                pruned.restored.append(version)
        elif not marked:
            store.files.create(path, sealed({"at": now.isoformat(timespec="seconds")}))
            pruned.marked.append(version)
        elif _marked_before(store, path, now - GRACE):
            _strip(store, version, found[version], pruned)
    for version, names in found.items():
        if version not in held and "manifest.json" in names:
            made = store.get(version)
            until = datetime.fromisoformat(made.created_at) + timedelta(
                microseconds=spec.keep_steps
            )
            known.stripped[version] = None if made.publisher == CYCLE else until
    _forget(store, spec, now, known)
    return pruned


def _forget(store: LineStore, spec: DeliverySpec, now: datetime, known: Known) -> None:
    """Remove what is left of a learner's old versions, and the generations that named them."""
    for version, until in list(known.stripped.items()):
        if until is not None and until < now:
            store.files.remove_folder(f"versions/{version}")
            del known.stripped[version]
    before = now - timedelta(microseconds=spec.keep_steps)
    before_us = int(before.timestamp() * 1_000_000)
    known.generation = store.forget(known.generation, before_us, spec.keep_versions)


def pin(store: LineStore, version: str, reason: str) -> None:
    """Keep a version's files whatever its age. Raises `InputError` for an unknown or pruned one."""
    store.require_files(version)
    store.files.replace(f"versions/{version}/pin.json", sealed({"reason": reason}))


def unpin(store: LineStore, version: str) -> None:
    """Leave a pinned version to retention again. Raises `InputError` for an unknown one."""
    store.get(version)
    store.files.remove(f"versions/{version}/pin.json")


def _files(store: LineStore, known: Known) -> dict[str, list[str]]:
    """Names of the files of each version that may have some."""
    if known.stripped:
        names = [name for name in store.files.names("versions") if name not in known.stripped]
        return {version: store.files.names(f"versions/{version}") for version in names}
    found: dict[str, list[str]] = {}
    for path in store.files.tree("versions"):
        version, _, name = path.partition("/")
        found.setdefault(version, []).append(name)
    return found


def _kept(
    store: LineStore,
    spec: DeliverySpec,
    published: dict[str, Version],
    pinned: set[str],
    now: datetime,
) -> set[str]:
    """Champions to roll back to, pins, racing arms, young candidates, and what these build on.

    One that passed is kept where its number follows those of all these champions: its promotion
    may be under way, and who would roll back or forward to it must find no mark.
    """
    kept = set(pinned)
    racing = Races(store).running()
    if racing is not None:
        kept.update(arm.version for arm in racing[1].arms)
    champions: set[str] = set()
    for champion in store.champions():
        champions.add(champion.version)
        if len(champions) == spec.keep_versions:
            break
    young = now - timedelta(microseconds=spec.keep_rejected)
    newest = max(map(_order, champions), default=_order(""))
    for name, version in published.items():
        passed = (store.verdict(name) or {}).get("passed", False)
        soon = passed and _order(name) > newest
        if soon or (not passed and datetime.fromisoformat(version.created_at) > young):
            kept.add(name)
    for name in list(kept | champions):
        if name in published:
            kept.update(link.version for link, _ in store.chain(published[name]))
    return kept


def _order(version: str) -> tuple[int, str]:
    """Versions in the order of their numbers."""
    return len(version), version


def _claimed_before(store: LineStore, version: str, moment: datetime) -> bool:
    claim = store.files.read_json(f"versions/{version}/claim.json")
    return claim is not None and datetime.fromisoformat(claim["claimed_at"]) < moment


def _marked_before(store: LineStore, path: str, moment: datetime) -> bool:
    mark = store.files.read_json(path)
    return mark is not None and datetime.fromisoformat(mark["at"]) <= moment


def _strip(store: LineStore, version: str, files: Iterable[str], pruned: Pruned) -> None:
    for name in sorted(files):  # base.json before the base that it names
        if name == "base.json" or name.endswith(_STATE):
            store.files.remove(f"versions/{version}/{name}")
    pruned.removed.append(version)
