"""A PostgreSQL of one's own on loopback, that a test may kill and start again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.campaign import free_port


class Postgres:
    """A PostgreSQL of one's own, on a free port of loopback."""

    def __init__(self, folder: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not found:
            pytest.skip("no PostgreSQL; run `bash infra/setup/postgres.sh` as root")
        self._bin, self._data, self.port = found[-1], folder / "db", free_port()
        self._as = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self._as:
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", str(self._data), "-U", "headrace", "-A", "trust")

    @property
    def url(self) -> str:
        return self.database("postgres")

    def database(self, name: str) -> str:
        """The URL of a database of that name."""
        return f"postgresql+psycopg://headrace@127.0.0.1:{self.port}/{name}"

    def create(self, name: str) -> str:
        """Make a database; its URL."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "headrace"]
        self._run("createdb", *where, name)
        return self.database(name)

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self._data} -c max_connections=200"
        log = str(self._data / "log")
        self._run("pg_ctl", "-D", str(self._data), "-w", "start", "-l", log, "-o", options)

    def kill(self) -> None:
        """As a power cut would: what was not committed is gone."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "stop")

    def _run(self, name: str, *arguments: str) -> None:
        command = [*self._as, str(self._bin / name), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/")


@contextmanager
def running() -> Iterator[Postgres]:
    """A server that has been started; nothing is left of it."""
    folder = Path("/tmp") / f"headrace-postgres-{os.getpid()}"  # its user must reach it
    folder.mkdir()
    try:
        server = Postgres(folder)
        server.start()
        yield server
        server.kill()
    finally:
        shutil.rmtree(folder)
