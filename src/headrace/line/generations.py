"""A log of numbered, sealed JSON files that is only ever appended to: compare-and-swap by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from headrace.sealed import SealedFiles, sealed


class Generations:
    """Reads and appends `<folder>/<generation>.json`, generations 1, 2, 3 …"""

    def __init__(self, files: SealedFiles, folder: str) -> None:
        self._files = files
        self._folder = folder
        self._newest = 0  # newest generation seen, where the search for a newer one starts

    def newest(self) -> int:
        """The newest generation, 0 without one; one look at the files when nothing has changed."""
        newest = self._newest or max(numbers(self._files.names(self._folder)), default=0)
        while self._files.exists(self._path(newest + 1)):
            newest += 1
        self._newest = newest
        return newest

    def read(self, generation: int) -> dict[str, Any] | None:
        """What was appended as that generation, None when nothing was."""
        return self._files.read_json(self._path(generation))

    def create(self, generation: int, body: dict[str, Any]) -> bool:
        """Append a generation; False when another writer appended it first."""
        return self._files.create(self._path(generation), sealed(body))

    def before(self, generation: int) -> int:
        """The newest generation below that one which was not removed, 0 without one."""
        kept = numbers(self._files.names(self._folder))
        return max((each for each in kept if each < generation), default=0)

    def remove(self, generation: int) -> None:
        """Forget an old generation; the newest must stay, for it is where appending goes on."""
        self._files.remove(self._path(generation))

    def _path(self, generation: int) -> str:
        return f"{self._folder}/{generation:08d}.json"


def numbers(names: Iterable[str]) -> list[int]:
    """The numbers in names such as `v000012` and `00000003.json`, rising."""
    stems = (name.removesuffix(".json").removeprefix("v") for name in names)
    return sorted(int(stem) for stem in stems if stem.isdigit())
