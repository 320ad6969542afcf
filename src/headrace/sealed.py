"""Small files that are written once and whole, on any fsspec path, and JSON that shows damage.

Creation is the compare-and-swap that everything else is built on: of all who create a name, one
gets True. Locally that is a hard link (temporary → fsync → link or rename → fsync of the folder),
on S3 a conditional put (`If-None-Match: *`, which answers 412 to all but the first), elsewhere
what the file system offers as exclusive mode. No file is ever visible half-written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from headrace.atomic import sync_folder
from headrace.errors import EnvironmentFault, IntegrityError

_BUSY_TRIES: Final = 5


class SealedFiles:
    """Files below `root`, a path or any fsspec URL; names are relative and use `/`.

    A store that cannot be reached or refuses the credentials raises `EnvironmentFault`.
    """

    def __init__(self, root: str | Path):
        # a listing that another process has changed since must not be answered from a cache
        remote = {"use_listings_cache": False} if "://" in str(root) else {}
        self.root = str(root)
        self._fs, self._path = fsspec.core.url_to_fs(self.root, **remote)
        self._local = isinstance(self._fs, LocalFileSystem)
        # one request: s3fs else asks for the size first, to read what is large in parts at once
        self._small = {"max_concurrency": 1} if "s3" in self._fs.protocol else {}

    def create(self, name: str, raw: bytes) -> bool:
        """Create a file with its whole content; False when it exists with other bytes.

        Equal bytes count as created: a client that lost the answer to its first put sends it
        again, and must not take itself for another writer. Make the bytes of each writer unique.
        """
        created = self._create_local(name, raw) if self._local else self._create_remote(name, raw)
        return created or self.read(name) == raw

    def replace(self, name: str, raw: bytes, durable: bool = True) -> None:
        """Write a file whole, over an older one if there is one.

        `durable=False` leaves the folder's sync to a later write into the same folder.
        """
        target = f"{self._path}/{name}"
        if self._local:
            _local_temporary(Path(target), raw).replace(target)
            if durable:
                sync_folder(Path(target).parent)
            return
        with self._reached(name):
            self._fs.pipe_file(target, raw)

    def exists(self, name: str) -> bool:
        """Whether the file is there now."""
        with self._reached(name):
            return bool(self._fs.exists(f"{self._path}/{name}"))

    def names(self, folder: str) -> list[str]:
        """Last parts of the names in a folder, sorted; empty when the folder is not there."""
        with self._reached(folder):
            try:
                entries = self._fs.ls(f"{self._path}/{folder}", detail=False)
            except FileNotFoundError:
                return []
        return sorted(Path(entry).name for entry in entries)

    def tree(self, folder: str) -> list[str]:
        """Names of all files at any depth below a folder, relative to it, sorted; one listing."""
        top = f"{self._path}/{folder}/"
        with self._reached(folder):
            found = self._fs.find(top)
        return sorted(path.partition(top)[2] for path in found)

    def read(self, name: str) -> bytes | None:
        """All bytes of a file, None when it is not there."""
        return self._read(name)

    @contextmanager
    def opened(self, name: str) -> Iterator[BufferedReader | BytesIO | None]:
        """A file to read that can seek, None when it is not there; a remote one comes whole."""
        if not self._local:
            raw = self._read(name)
            yield None if raw is None else BytesIO(raw)
            return
        with ExitStack() as stack:
            file = None
            with suppress(FileNotFoundError):
                file = stack.enter_context(Path(f"{self._path}/{name}").open("rb"))
            yield file

    def remove(self, name: str) -> None:
        """Delete a file; nothing happens when it is not there."""
        with self._reached(name):
            try:
                self._fs.rm_file(f"{self._path}/{name}")
            except FileNotFoundError:
                return

    def remove_folder(self, name: str) -> None:
        """Delete all files below a folder; nothing happens when it is not there."""
        with self._reached(name):
            try:
                self._fs.rm(f"{self._path}/{name}", recursive=True)
            except FileNotFoundError:
                return

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A sealed JSON object without its seal, None when it is not there.

        Raises `IntegrityError` when the bytes are torn or were altered.
        """
        raw = self._read(name, **self._small)
        return None if raw is None else _unsealed(f"{self.root}/{name}", raw)

    def _read(self, name: str, **how: int) -> bytes | None:
        with self._reached(name):
            try:
                raw: bytes = self._fs.cat_file(f"{self._path}/{name}", **how)
            except FileNotFoundError:
                return None
        return raw

    def _create_local(self, name: str, raw: bytes) -> bool:
        target = Path(self._path) / name
        temporary = _local_temporary(target, raw)
        try:
            os.link(temporary, target)  # exclusive as O_EXCL, but never visible half-written
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        sync_folder(target.parent)
        return True

    def _create_remote(self, name: str, raw: bytes) -> bool:
        for attempt in range(_BUSY_TRIES):
            try:
                with self._reached(name):
                    self._fs.pipe_file(f"{self._path}/{name}", raw, mode="create")
            except FileExistsError:
                return False
            except EnvironmentFault as problem:
                answer = _code(problem.__cause__)
                if answer == "PreconditionFailed":  # of stores that do not say which condition
                    return False
                # S3 answers 409 while another conditional put of the same key is under way
                if answer != "ConditionalRequestConflict" or attempt + 1 == _BUSY_TRIES:
                    raise
                time.sleep(0.05 * 2**attempt)
            else:
                return True
        raise AssertionError("unreachable")

    @contextmanager
    def _reached(self, name: str) -> Iterator[None]:
        """Turn what the client library of a remote store raises into an `EnvironmentFault`."""
        try:
            yield
        except FileExistsError:
            raise
        except Exception as problem:
            if self._local:
                raise
            told = "the bucket does not exist" if _is_absent(problem) else str(problem)
            raise EnvironmentFault(
                f"line store {self.root}: {name} could not be reached ({told}); check "
                "HEADRACE_LINE_STORE, AWS_ENDPOINT_URL and the credentials in the environment"
            ) from problem


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


def _is_absent(problem: Exception) -> bool:
    return isinstance(problem, OSError) and (
        isinstance(problem, FileNotFoundError) or problem.errno == errno.ENOENT
    )


def _code(problem: BaseException | None) -> str | None:
    """The store's own name of an error, from the botocore exception below an OSError."""
    response = getattr(getattr(problem, "__cause__", None), "response", None) or {}
    code = response.get("Error", {}).get("Code")
    return None if code is None else str(code)


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
