"""`LineStore`: publish, load, judge and promote the versions of one line."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Final, Unpack

from headrace.errors import InputError, IntegrityError
from headrace.line import states, tensors
from headrace.line.champions import Champions, served_before, version_before
from headrace.line.fingerprint import fingerprint as fingerprint_of
from headrace.line.generations import numbers
from headrace.line.version import About, Champion, Stored, Version
from headrace.model import delta
from headrace.model.delta import State
from headrace.sealed import SealedFiles, sealed

LONGEST_CHAIN: Final = 100
"""Deltas after which `publish` makes a base itself, in case that nobody compacts."""
RECOUNT: Final = LONGEST_CHAIN // 2


class LineStore:
    """The versions and the champion of one line below `root`, a path or any fsspec URL.

    Safe for several threads and processes at once: no file is ever changed after its creation,
    evidence and verdict apart, which are replaced whole.
    """

    def __init__(self, root: str | Path, line: str):
        self.line = line
        self.files = SealedFiles(root)
        self._champions = Champions(self.files, line)
        self._claimed = 0  # newest number that is known to be taken

    # versions

    def publish(
        self,
        state: State,
        *,
        parent: str | None,
        parent_state: State | None = None,
        **about: Unpack[About],
    ) -> Version:
        """Store a state as the next version: as a delta to `parent`, or as a base without one.

        `parent_state` saves reading the parent's where the caller holds it. The version is no
        champion before `advance`. A chain of `LONGEST_CHAIN` deltas is ended by a base.
        """
        whole = fingerprint_of(state)
        if parent is not None:
            before = self.get(parent)
            if self._length(before)[0] < LONGEST_CHAIN:
                if parent_state is None:
                    parent_state = self.load(parent)[1]
                return self.publish_delta(
                    delta.diff(parent_state, state), parent=before, fingerprint=whole, **about
                )
        raw = tensors.encode(state)
        return self._commit(raw, about, kind="base", parent=parent, fingerprint=whole, chain=(0, 0))

    def publish_delta(
        self, changes: State, *, parent: Version, fingerprint: int, **about: Unpack[About]
    ) -> Version:
        """Store what changed since `parent` as the next version, in time of the touched rows.

        changes: as `headrace.model.delta.diff` gives them. `fingerprint`: of the state that they
        lead to (`fingerprint.carried`); who loads the version checks it. No base is made however
        long the chain: that is the upkeep's, or `publish` with the whole state.
        """
        raw = tensors.encode(changes)
        deltas, size = self._length(parent)
        return self._commit(
            raw,
            about,
            kind="delta",
            parent=parent.version,
            fingerprint=fingerprint,
            chain=(deltas + 1, size + len(raw)),
        )

    def load(self, version: str) -> tuple[Version, State]:
        """A version and its whole state, checked byte for byte along its chain of deltas.

        Raises `InputError` for an unknown or pruned version, `IntegrityError` for damage.
        """
        self.require_files(version)
        manifest = self.get(version)
        return manifest, states.restore(self.files, self.chain(manifest))

    def get(self, version: str) -> Version:
        """The manifest of a version. Raises `InputError` when no such version was published."""
        body = self.files.read_json(f"versions/{version}/manifest.json")
        if body is None:
            raise InputError(f"version {version!r} of line {self.line!r} {self._unknown(version)}")
        try:
            manifest = Version(**body)
        except TypeError as problem:
            raise IntegrityError(f"manifest of {version}: {problem}; remove the version") from None
        if (manifest.version, manifest.line) != (version, self.line):
            raise IntegrityError(
                f"versions/{version}: its manifest is of {manifest.line}/{manifest.version}, "
                f"not of {self.line}/{version}; remove the version"
            )
        return manifest

    def versions(self) -> list[Version]:
        """All published versions, oldest first."""
        return [self.get(version) for version in self.published()]

    def put_evidence(self, version: str, evidence: dict[str, Any]) -> None:
        """Store (or replace) what a candidate's evaluation found."""
        self._put(version, "evidence", evidence)

    def evidence(self, version: str) -> dict[str, Any] | None:
        """The evidence of a version, None before there is any."""
        return self.files.read_json(f"versions/{version}/evidence.json")

    def put_verdict(self, version: str, verdict: dict[str, Any]) -> None:
        """Store (or replace) what the gates said about a version."""
        self._put(version, "verdict", verdict)

    def verdict(self, version: str) -> dict[str, Any] | None:
        """The verdict on a version, None before there is any."""
        return self.files.read_json(f"versions/{version}/verdict.json")

    # champion

    def champion(self) -> Champion | None:
        """The newest champion; costs one look at the file system when nothing has changed."""
        return self._champions.newest()

    def history(self) -> list[Champion]:
        """All champions, oldest first."""
        return self._champions.history()

    def champions(self) -> Iterator[Champion]:
        """All champions, newest first, each read when it is asked for."""
        return self._champions.backwards()

    def earlier(self) -> Iterator[Champion]:
        """The champions before the present one that no rollback took back, newest first."""
        return served_before(self._champions.backwards())

    def forget(self, since: int, before_us: int, keep: int) -> int:
        """Remove old generations of learners; see `Champions.forget`."""
        return self._champions.forget(since, before_us, keep)

    def advance(
        self, expected: Champion | None, version: str, action: str, reason: str
    ) -> Champion:
        """Make a version champion if the champion still is `expected` (None: there is none yet).

        Raises `ConflictError` when another writer advanced the line first, `InputError` for a
        version that was not published or whose files were pruned.
        """
        self.require_files(version)
        return self._champions.append(expected, version, action, reason)

    def rollback(self, to: str | None = None, reason: str = "") -> Champion:
        """Make an earlier version champion again, as a new generation.

        `to`: as `rollback_target` chooses. Raises `InputError` when there is no such version,
        `ConflictError` when another writer was faster.
        """
        present, target = self.rollback_target(to)
        return self.advance(present, target, "rollback", reason)

    def rollback_target(self, to: str | None = None) -> tuple[Champion, str]:
        """The present champion and the version to return to.

        Without `to`: the version that served before the present one was promoted, so that a
        second rollback goes further back instead of returning to what was just left. Raises
        `InputError` when there is no such version.
        """
        present = self.champion()
        if present is None:
            raise InputError(f"line {self.line!r} has no champion yet; promote a version first")
        target = to if to is not None else version_before(self.champions())
        if target is None:
            raise InputError(
                f"line {self.line!r} has had no champion but {present.version!r}; name a "
                "version to roll back to"
            )
        self.require_files(target)
        return present, target

    # files

    def _commit(
        self,
        raw: bytes,
        about: About,
        *,
        kind: str,
        parent: str | None,
        fingerprint: int,
        chain: tuple[int, int],
    ) -> Version:
        version = self._claim()
        name = "state.safetensors.zst"
        # the manifest goes into the same folder and syncs it for both
        self.files.replace(f"versions/{version}/{name}", raw, durable=False)
        manifest = Version(
            version=version,
            line=self.line,
            parent=parent,
            kind=kind,
            created_at=datetime.now(UTC).isoformat(),
            files={name: hashlib.sha256(raw).hexdigest()},
            size=len(raw),
            fingerprint=states.to_hex(fingerprint),
            chain_deltas=chain[0],
            chain_bytes=chain[1],
            **about,
        )
        self.files.replace(f"versions/{version}/manifest.json", sealed(manifest.to_json()))
        return manifest

    def _length(self, version: Version) -> tuple[int, int]:
        """Deltas after the version's base, and their bytes; at most what they truly are.

        A manifest cannot know of a base that was written into its chain later, so a count that
        has grown long is taken again.
        """
        if version.chain_deltas < RECOUNT:
            return version.chain_deltas, version.chain_bytes
        deltas = self.chain(version)[1:]
        return len(deltas), sum(each.size for each, _ in deltas)

    def chain(self, version: Version) -> list[tuple[Version, Stored]]:
        """The versions from the nearest base up to this one, with the file to read of each.

        Raises `IntegrityError` when a link is missing.
        """
        chain = [(version, self.stored(version)[-1])]
        while not chain[-1][1].whole:
            parent = chain[-1][0].parent
            if parent is None or parent >= chain[-1][0].version:
                raise IntegrityError(f"{version.version}: its deltas end in no base; load another")
            try:
                manifest = self.get(parent)
            except InputError as problem:
                raise IntegrityError(f"{version.version} needs a parent: {problem}") from None
            chain.append((manifest, self.stored(manifest)[-1]))
        return chain[::-1]

    def path(self, since: str, to: str) -> list[Version] | None:
        """The versions whose deltas lead from one to a later one, in order; None if none do."""
        path = [self.get(to)]
        while path[-1].kind == "delta" and path[-1].parent not in (None, since):
            if len(path) > LONGEST_CHAIN:
                return None
            path.append(self.get(str(path[-1].parent)))
        reached = path[-1].kind == "delta" and path[-1].parent == since
        return path[::-1] if reached else None

    def delta(self, version: Version) -> State:
        """What a version that is a delta changes. Raises `IntegrityError` for damaged bytes."""
        return states.read(self.files, self.stored(version)[0])

    def stored(self, version: Version) -> list[Stored]:
        """The file that was published, and after compaction a base of the same state."""
        ((name, digest),) = version.files.items()
        folder = f"versions/{version.version}"
        published = Stored(f"{folder}/{name}", digest, version.kind == "base")
        base = None if published.whole else self.files.read_json(f"{folder}/base.json")
        if base is None:
            return [published]
        return [published, Stored(f"{folder}/{base['file']}", base["sha256_of_file"], whole=True)]

    def published(self) -> list[str]:
        """Names of all published versions, oldest first."""
        files = (path.split("/") for path in self.files.tree("versions"))
        found = numbers(path[0] for path in files if path[1:] == ["manifest.json"])
        return [_name(number) for number in found]

    def newest(self) -> str | None:
        """Name of the newest published version."""
        return next(iter(self.latest(1)), None)

    def latest(self, count: int) -> list[str]:
        """Names of the newest published versions, newest first; `count` of them at most."""
        claimed = map(_name, reversed(numbers(self.files.names("versions"))))
        there = (n for n in claimed if self.files.exists(f"versions/{n}/manifest.json"))
        return list(islice(there, count))

    def require_files(self, version: str) -> None:
        """Raise `InputError` when a version does not exist or its files were pruned."""
        self.get(version)
        at = self.pruned_at(version)
        if at is not None:
            raise InputError(
                f"version {version!r} of line {self.line!r} was pruned at {at}; name a newer one, "
                "and pin what must stay (headrace line pin)"
            )

    def pruned_at(self, version: str) -> str | None:
        """When retention gave up a version's files (ISO 8601), None while it keeps them."""
        mark = self.files.read_json(f"versions/{version}/pruned.json")
        return None if mark is None else str(mark["at"])

    def _unknown(self, version: str) -> str:
        known = self.published()
        near = get_close_matches(version, known, n=3, cutoff=0.7)
        if near:
            return f"does not exist; did you mean {', '.join(near)}?"
        newest = ", ".join(known[-3:]) or "none"
        return f"does not exist; known: {newest}" + (f" of {len(known)}" if len(known) > 3 else "")

    def _claim(self) -> str:
        if not self._claimed:  # later, only the next numbers are tried, however many there are
            self._claimed = max(numbers(self.files.names("versions")), default=0)
        number = self._claimed + 1
        claim = sealed(
            {
                "claimed_at": datetime.now(UTC).isoformat(),
                "pid": os.getpid(),
                "nonce": uuid.uuid4().hex,  # `create` takes equal bytes for its own
            }
        )
        while not self.files.create(f"versions/{_name(number)}/claim.json", claim):
            number += 1
        self._claimed = number
        return _name(number)

    def _put(self, version: str, name: str, body: dict[str, Any]) -> None:
        self.get(version)
        self.files.replace(f"versions/{version}/{name}.json", sealed(body))


def _name(number: int) -> str:
    return f"v{number:06d}"
