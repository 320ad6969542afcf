"""Versions of a line and the pointer to its champion, on any fsspec path.

    <root>/versions/v000001/claim.json              number taken, by exclusive creation
    <root>/versions/v000001/state.safetensors.zst   whole state (base) or delta to the parent
    <root>/versions/v000001/manifest.json           the `Version`, written last: it is the commit
    <root>/versions/v000001/{evidence,verdict}.json
    <root>/champion/00000001.json                   one `Champion` a generation, never rewritten

The newest generation is the champion. Advancing is compare-and-swap: whoever creates the next
generation's file first has won; the other gets a `ConflictError`. A number claimed by a
publisher that died stays unused. Every JSON file carries a SHA-256 of its content, every state
file has one in its manifest; bytes that do not match raise `IntegrityError`.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors.numpy
import zstandard

from headrace.errors import ConflictError, InputError, IntegrityError
from headrace.model import delta
from headrace.model.delta import State
from headrace.sealed import SealedFiles, sealed

VERSIONS_PER_BASE = 20


@dataclass(frozen=True)
class Version:
    """One published model of a line; see DESIGN rule 6.

    Ticks [from_tick, to_tick) were learned since the parent, without the `excluded` tick
    intervals [from, to). `watermark_us`, `event_at_us`: arrival and event time of the newest
    event learned. `files`: SHA-256 of the stored bytes by name; `state_sha256`: of the whole
    state, however stored.
    """

    version: str
    line: str
    parent: str | None
    kind: str
    created_at: str
    from_tick: int
    to_tick: int
    excluded: list[list[int]]
    watermark_us: int
    event_at_us: int
    feature_service: str
    code: str
    rows: int
    metrics: dict[str, float]
    files: dict[str, str]
    state_sha256: str


@dataclass(frozen=True)
class Champion:
    """The version that serves since `at_us`. `action`: why it moved, such as promote, rollback."""

    generation: int
    version: str
    at_us: int
    action: str
    reason: str
    previous: str | None


class LineStore:
    """The versions and the champion of one line below `root`, a path or any fsspec URL.

    Safe for several threads and processes at once: no file is ever changed after its creation,
    evidence and verdict apart, which are replaced whole.
    """

    def __init__(self, root: str | Path, line: str, compress: bool = True):
        self._files = SealedFiles(root)
        self.line = line
        self._compress = compress
        self._generation = 0  # newest one seen, where the search for a newer one starts

    # versions

    def publish(
        self,
        state: State,
        *,
        parent: str | None,
        from_tick: int,
        to_tick: int,
        excluded: list[list[int]],
        watermark_us: int,
        event_at_us: int,
        feature_service: str,
        code: str,
        rows: int,
        metrics: dict[str, float],
    ) -> Version:
        """Store a state as the next version: a delta to `parent`, or a base.

        A base is made without a parent and when the parent's chain has `VERSIONS_PER_BASE`
        versions. The version is no champion before `advance`.
        """
        kind, stored = "base", state
        if parent is not None:
            chain = self._chain(self.get(parent))
            if len(chain) < VERSIONS_PER_BASE:
                kind, stored = "delta", delta.diff(self._restore(chain), state)
        raw = safetensors.numpy.save({k: v.copy(order="C") for k, v in stored.items()})
        name = "state.safetensors"
        if self._compress:
            name, raw = f"{name}.zst", zstandard.ZstdCompressor().compress(raw)
        version = self._claim()
        self._files.replace(f"versions/{version}/{name}", raw)
        manifest = Version(
            version=version,
            line=self.line,
            parent=parent,
            kind=kind,
            created_at=datetime.now(UTC).isoformat(),
            from_tick=from_tick,
            to_tick=to_tick,
            excluded=[list(interval) for interval in excluded],
            watermark_us=watermark_us,
            event_at_us=event_at_us,
            feature_service=feature_service,
            code=code,
            rows=rows,
            metrics=dict(metrics),
            files={name: hashlib.sha256(raw).hexdigest()},
            state_sha256=_digest(state),
        )
        self._files.replace(f"versions/{version}/manifest.json", sealed(asdict(manifest)))
        return manifest

    def load(self, version: str) -> tuple[Version, State]:
        """A version and its whole state, checked byte for byte along its chain of deltas.

        Raises `InputError` for an unknown version, `IntegrityError` for damaged bytes.
        """
        manifest = self.get(version)
        return manifest, self._restore(self._chain(manifest))

    def get(self, version: str) -> Version:
        """The manifest of a version. Raises `InputError` when no such version was published."""
        body = self._files.read_json(f"versions/{version}/manifest.json")
        if body is None:
            raise InputError(
                f"version {version!r} of line {self.line!r} does not exist; "
                f"known: {', '.join(self._published()) or 'none'}"
            )
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
        return [self.get(version) for version in self._published()]

    def put_evidence(self, version: str, evidence: dict[str, Any]) -> None:
        """Store (or replace) what a candidate's evaluation found."""
        self._put(version, "evidence", evidence)

    def evidence(self, version: str) -> dict[str, Any] | None:
        """The evidence of a version, None before there is any."""
        return self._files.read_json(f"versions/{version}/evidence.json")

    def put_verdict(self, version: str, verdict: dict[str, Any]) -> None:
        """Store (or replace) what the gates said about a version."""
        self._put(version, "verdict", verdict)

    def verdict(self, version: str) -> dict[str, Any] | None:
        """The verdict on a version, None before there is any."""
        return self._files.read_json(f"versions/{version}/verdict.json")

    # champion

    def champion(self) -> Champion | None:
        """The newest champion; costs one look at the file system when nothing has changed."""
        newest = self._generation or max(self._numbers("champion"), default=0)
        while self._files.exists(_generation_path(newest + 1)):
            newest += 1
        self._generation = newest
        return self._champion(newest) if newest else None

    def history(self) -> list[Champion]:
        """All champions, oldest first."""
        newest = self.champion()
        return [self._champion(g) for g in range(1, newest.generation + 1)] if newest else []

    def advance(
        self, expected: Champion | None, version: str, action: str, reason: str
    ) -> Champion:
        """Make a version champion if the champion still is `expected` (None: there is none yet).

        Raises `ConflictError` when another writer advanced the line first, `InputError` for a
        version that was not published.
        """
        self.get(version)
        if expected is not None and expected != self._champion(expected.generation):
            raise ConflictError(
                f"line {self.line!r}: generation {expected.generation} is not {expected.version!r} "
                "in this store; read champion() again"
            )
        new = Champion(
            generation=expected.generation + 1 if expected else 1,
            version=version,
            at_us=time.time_ns() // 1000,
            action=action,
            reason=reason,
            previous=expected.version if expected else None,
        )
        if self._files.create(_generation_path(new.generation), sealed(asdict(new))):
            return new
        winner = self._champion(new.generation)
        raise ConflictError(
            f"line {self.line!r}: {version!r} was to follow generation {new.generation - 1}, but "
            f"{winner.version!r} did ({winner.action}: {winner.reason}); start again from it"
        )

    def rollback(self, to: str | None = None, reason: str = "") -> Champion:
        """Make an earlier version champion again, as a new generation.

        Without `to`: the version that served before the present one was promoted, so that a
        second rollback goes further back instead of returning to what was just left. Raises
        `InputError` when there is no such version, `ConflictError` when another writer was faster.
        """
        history = self.history()
        if not history:
            raise InputError(f"line {self.line!r} has no champion yet; promote a version first")
        target = to if to is not None else _version_before(history)
        if target is None:
            raise InputError(
                f"line {self.line!r} has had no champion but {history[-1].version!r}; name a "
                "version to roll back to"
            )
        return self.advance(history[-1], target, "rollback", reason)

    def _champion(self, generation: int) -> Champion:
        body = self._files.read_json(_generation_path(generation))
        if body is None:
            raise ConflictError(
                f"line {self.line!r} has no generation {generation}; read champion() again"
            )
        try:
            return Champion(**body)
        except TypeError as problem:
            raise IntegrityError(f"champion {generation} of {self.line!r}: {problem}") from None

    # states

    def _chain(self, version: Version) -> list[Version]:
        """The versions from the nearest base up to this one."""
        chain = [version]
        while chain[-1].kind != "base":
            parent = chain[-1].parent
            if parent is None or len(chain) > VERSIONS_PER_BASE:
                raise IntegrityError(f"{version.version}: its deltas end in no base; load another")
            try:
                chain.append(self.get(parent))
            except InputError as problem:
                raise IntegrityError(f"{version.version} needs a parent: {problem}") from None
        return chain[::-1]

    def _restore(self, chain: list[Version]) -> State:
        state: State = {}
        for version in chain:
            stored = self._stored(version)
            state = stored if version.kind == "base" else delta.apply(state, stored)
        if _digest(state) != chain[-1].state_sha256:
            raise IntegrityError(
                f"{chain[-1].version}: base and deltas do not add up to the state that was "
                "published; load another version"
            )
        return state

    def _stored(self, version: Version) -> State:
        ((name, digest),) = version.files.items()
        path = f"versions/{version.version}/{name}"
        raw = self._files.read(path)
        if raw is None or hashlib.sha256(raw).hexdigest() != digest:
            found = "is missing" if raw is None else "does not match its SHA-256"
            raise IntegrityError(f"{path} of line {self.line!r} {found}; load another version")
        if name.endswith(".zst"):
            raw = zstandard.ZstdDecompressor().decompress(raw)
        state: State = safetensors.numpy.load(raw)
        return state

    def _published(self) -> list[str]:
        names = [f"v{number:06d}" for number in self._numbers("versions")]
        return [name for name in names if self._files.exists(f"versions/{name}/manifest.json")]

    def _claim(self) -> str:
        number = max(self._numbers("versions"), default=0) + 1
        claim = sealed({"claimed_at": datetime.now(UTC).isoformat(), "pid": os.getpid()})
        while not self._files.create(f"versions/v{number:06d}/claim.json", claim):
            number += 1
        return f"v{number:06d}"

    def _put(self, version: str, name: str, body: dict[str, Any]) -> None:
        self.get(version)
        self._files.replace(f"versions/{version}/{name}.json", sealed(body))

    def _numbers(self, folder: str) -> list[int]:
        stems = (n.removesuffix(".json").removeprefix("v") for n in self._files.names(folder))
        return sorted(int(stem) for stem in stems if stem.isdigit())


def _version_before(history: list[Champion]) -> str | None:
    """What served before the present champion was last promoted, None when nothing else did."""
    present = history[-1].version
    own = [r for r in history if r.version == present and r.action != "rollback"]
    until = own[-1].generation if own else history[-1].generation
    earlier = [r.version for r in history[: until - 1] if r.version != present]
    return earlier[-1] if earlier else None


def _generation_path(generation: int) -> str:
    return f"champion/{generation:08d}.json"


def _digest(state: State) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all arrays."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
