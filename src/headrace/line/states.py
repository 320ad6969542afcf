"""A state or a delta as one compressed file, and what a chain of them adds up to."""

from __future__ import annotations

import hashlib

import safetensors.numpy
import zstandard

from headrace.errors import IntegrityError
from headrace.line.fingerprint import fingerprint
from headrace.line.version import Stored, Version
from headrace.model import delta
from headrace.model.delta import State
from headrace.sealed import SealedFiles

# Weights are noise to a compressor: a higher level takes twice the time for 0.1% fewer bytes.
_LEVEL = 1


def encode(state: State) -> bytes:
    """Arrays as zstd-compressed safetensors; equal states give equal bytes."""
    raw = safetensors.numpy.save({name: array.copy(order="C") for name, array in state.items()})
    return zstandard.ZstdCompressor(level=_LEVEL).compress(raw)


def read(files: SealedFiles, stored: Stored) -> State:
    """The arrays of a stored file. Raises `IntegrityError` when it is missing or damaged."""
    raw = files.read(stored.path)
    if raw is None or hashlib.sha256(raw).hexdigest() != stored.sha256:
        found = "is missing" if raw is None else "does not match its SHA-256"
        raise IntegrityError(f"{files.root}/{stored.path} {found}; load another version")
    state: State = safetensors.numpy.load(zstandard.ZstdDecompressor().decompress(raw))
    return state


def restore(files: SealedFiles, chain: list[tuple[Version, Stored]]) -> State:
    """The state at the end of a chain that starts with a whole state, proven by its fingerprint."""
    state: State = {}
    for _, stored in chain:
        found = read(files, stored)
        state = found if stored.whole else delta.apply(state, found)
    require_fingerprint(chain[-1][0], state)
    return state


def require_fingerprint(version: Version, state: State) -> None:
    """Raise `IntegrityError` unless this is the state that was published as `version`."""
    if to_hex(fingerprint(state)) != version.fingerprint:
        raise IntegrityError(
            f"{version.version}: base and deltas do not add up to the state that was published; "
            "load another version"
        )


def to_hex(number: int) -> str:
    """A fingerprint as it is written down."""
    return f"{number:016x}"
