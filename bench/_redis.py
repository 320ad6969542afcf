"""A Redis of one's own: on a free port of this machine, for a benchmark or a test."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

REMEDY = "run `bash infra/setup/redis.sh` as root"
ABSENT = f"redis-server is not installed; {REMEDY}"


def installed() -> bool:
    """Whether there is a `redis-server` to start."""
    return shutil.which("redis-server") is not None


class RedisServer:
    """`redis-server` in a folder of its own. It keeps nothing on disk: a restart is empty."""

    def __init__(self, folder: Path, password: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._folder = folder
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL of database 3."""
        return f"redis://:{quote(self._password)}@127.0.0.1:{self.port}/3"

    def start(self) -> None:
        """Start it and wait until it listens."""
        options = {
            "port": self.port, "bind": "127.0.0.1", "dir": self._folder, "save": "",
            "requirepass": self._password,
        }  # fmt: skip
        command = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self._process = subprocess.Popen(["redis-server", *command], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"redis-server did not start on port {self.port}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill it: what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
