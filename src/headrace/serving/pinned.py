"""A version that a request asks for by name, to look at what it says: for debugging."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.line import LineStore, Version
from headrace.model import Model
from headrace.serving.loaded import Loaded
from headrace.serving.resident import Resident
from headrace.serving.swap import Follower

_VERSION: Final = re.compile(r"v\d{6,12}")


@dataclass(frozen=True)
class Held:
    """A model in memory that was asked for by the name of its version."""

    version: Version
    model: Model


class Pinned:
    """The champion where it is asked for, and one other version: the one asked for last.

    Asking for a third takes the second's place: a load, for which only pinned requests wait.
    """

    def __init__(self, spec: LineSpec, lines: LineStore, models: Follower) -> None:
        self._spec = spec
        self._lines = lines
        self._models = models
        self._held: Held | None = None
        self._one_at_a_time = threading.Lock()

    @contextmanager
    def use(self, version: str) -> Iterator[Loaded | Held]:
        """The model of a version. Raises `InputError` when the line has none of that name."""
        if self._models.ready and self._models.current().version.version == version:
            with self._models.use() as loaded:
                if loaded.version.version == version:  # no swap came in between
                    yield loaded
                    return
        with self._one_at_a_time:
            yield self._load(version)

    def check(self, version: str) -> None:
        """Raise `InputError` when the line has no version of that name, or its files are gone."""
        if not _VERSION.fullmatch(version):
            raise InputError(f"version {version[:80]!a} is no name of a version, such as v000007")
        self._lines.require_files(version)

    def _load(self, version: str) -> Held:
        if self._held is None or self._held.version.version != version:
            self.check(version)
            self._held = None  # its memory is free for the next one
            resident = Resident(self._spec)
            found, state = self._lines.load(version)
            resident.load(found, state)
            self._held = Held(found, resident.model)
        return self._held
