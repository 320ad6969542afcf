"""`malformed.jsonl`: refused events with their reasons; they never enter the log."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from headrace.ingest.intake import Refused


class SideLog:
    """One refused event a line, durable when `add` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._guard = threading.Lock()
        self._file = path.open("a+b")
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":  # the line that a kill cut short
                self._file.write(b"\n")
        self._file.seek(0)
        self.count = sum(1 for line in self._file if line.strip())

    def add(self, refused: list[Refused], received_at: int) -> None:
        """Keep refused events with their reasons; `received_at` in us."""
        lines = [
            json.dumps({"received_at": received_at, "reason": why, "raw": raw})
            for why, raw in refused
        ]
        with self._guard:
            self._file.write("".join(line + "\n" for line in lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self.count += len(lines)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._file.seek(0, os.SEEK_END)

    def rewind(self, size: int) -> None:
        """Take back what was added behind the first `size` bytes."""
        with self._guard:
            self._file.truncate(size)
            os.fsync(self._file.fileno())
            self._file.seek(0)
            self.count = sum(1 for line in self._file if line.strip())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
