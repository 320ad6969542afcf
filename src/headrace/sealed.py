"""Small files that are written once and whole, on any fsspec path, and JSON that shows damage.

Locally a file appears with all its bytes or not at all (temporary → fsync → link or rename →
fsync of the folder). On other file systems creation is left to fsspec's exclusive mode and
replacement to the store's own atomic put.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from headrace.atomic import sync_folder
from headrace.errors import IntegrityError


class SealedFiles:
    """Files below `root`, a path or any fsspec URL; names are relative and use `/`."""

    def __init__(self, root: str | Path):
        self._fs, self._root = fsspec.core.url_to_fs(str(root))

    def create(self, name: str, raw: bytes) -> bool:
        """Create a file with its whole content unless it exists; False when it does."""
        target = f"{self._root}/{name}"
        if isinstance(self._fs, LocalFileSystem):
            temporary = _local_temporary(Path(target), raw)
            try:
                os.link(temporary, target)  # exclusive as O_EXCL, but never visible half-written
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            sync_folder(Path(target).parent)
            return True
        try:
            with self._fs.open(target, "xb") as file:
                file.write(raw)
        except FileExistsError:
            return False
        return True

    def replace(self, name: str, raw: bytes) -> None:
        """Write a file whole, over an older one if there is one."""
        target = f"{self._root}/{name}"
        if isinstance(self._fs, LocalFileSystem):
            _local_temporary(Path(target), raw).replace(target)
            sync_folder(Path(target).parent)
        else:
            self._fs.pipe_file(target, raw)

    def exists(self, name: str) -> bool:
        """Whether the file is there now, whatever a listing cache says."""
        self._fs.invalidate_cache(f"{self._root}/{Path(name).parent}")
        return bool(self._fs.exists(f"{self._root}/{name}"))

    def names(self, folder: str) -> list[str]:
        """Last parts of the names in a folder, sorted; empty when the folder is not there."""
        path = f"{self._root}/{folder}"
        self._fs.invalidate_cache(path)
        try:
            entries = self._fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(Path(entry).name for entry in entries)

    def read(self, name: str) -> bytes | None:
        """All bytes of a file, None when it is not there."""
        try:
            raw: bytes = self._fs.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        return raw

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A sealed JSON object without its seal, None when it is not there.

        Raises `IntegrityError` when the bytes are torn or were altered.
        """
        raw = self.read(name)
        return None if raw is None else _unsealed(f"{self._root}/{name}", raw)


def sealed(body: dict[str, Any]) -> bytes:
    """JSON of `body` with the SHA-256 of its canonical form under the key `sha256`."""
    body = json.loads(json.dumps(body))  # keys become strings before they are sorted
    return _canonical({**body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()})


def _unsealed(path: str, raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
        digest = body.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{path} is torn: not a sealed JSON object; restore it") from None
    if hashlib.sha256(_canonical(body)).hexdigest() != digest:
        raise IntegrityError(f"{path} was altered: its SHA-256 does not match; restore it")
    return dict(body)


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, indent=1).encode()


def _local_temporary(target: Path, raw: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
