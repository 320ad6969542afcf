"""A state or a delta as one compressed file, and what a chain of them adds up to."""

from __future__ import annotations

import hashlib

from headrace.errors import IntegrityError
from headrace.line import tensors
from headrace.line.fingerprint import fingerprint
from headrace.line.version import Stored, Version
from headrace.model import delta
from headrace.model.delta import State
from headrace.sealed import SealedFiles


def read(files: SealedFiles, stored: Stored) -> State:
    """The arrays of a stored file, writable. Raises `IntegrityError` when it is missing or damaged.

    A local file is read twice, first for its SHA-256, and is never in memory whole.
    """
    with files.opened(stored.path) as file:
        if file is None or hashlib.file_digest(file, "sha256").hexdigest() != stored.sha256:
            found = "is missing" if file is None else "does not match its SHA-256"
            raise IntegrityError(f"{files.root}/{stored.path} {found}; load another version")
        file.seek(0)
        return tensors.decode(file)


def restore(files: SealedFiles, chain: list[tuple[Version, Stored]]) -> State:
    """The state at the end of a chain that starts with a whole state, proven by its fingerprint."""
    state: State = {}
    for _, stored in chain:
        found = read(files, stored)
        if stored.whole:
            state = found
        else:
            delta.go_on(state, found)  # the arrays are nobody else's
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
