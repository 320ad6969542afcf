"""A home, a line of toy data, and the command line in this process.

The verbs run through `headrace.cli.main`, as the installed script calls it.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from headrace import cli
from headrace.line import LineStore

TOY: dict[str, Any] = {
    "line": "toy",
    "columns": {"item": "string"},
    "source": {
        "kind": "files",
        "impressions": {
            "path": "toy.csv",
            "id": "id",
            "time": {"expression": "at"},
            "columns": {"item": "item"},
        },
        "label": {"value": "hit", "delay_s": "60"},
    },
    "label": {"engagement": "hit", "outcome": "explicit", "attribution_window": "1d"},
    "windows": [
        {"name": "n", "key": ["item"], "event": "hit", "aggregate": "count", "window": "6h"}
    ],
    "request_features": [{"name": "item_id", "kind": "hash", "of": "item"}],
    "model": {"family": "ftrl", "categorical": ["item_id"], "table_bits": 8},
    "gates": {"data": {"min_rows": 10}},
    "cadence": {"incremental": "6h"},
}


@dataclass(frozen=True)
class Ended:
    """How a call of the command line ended."""

    code: int
    out: str
    err: str


class Place:
    """A home, a folder of lines with `toy.yaml`, data for it, and the command line."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys
        self.home, self.lines, self.data = root / "home", root / "lines", root / "data"
        self.lines.mkdir()
        self.data.mkdir()
        self.yaml = self.lines / "toy.yaml"
        self.result = root / "out" / "toy.json"
        self.declare(TOY)

    def declare(self, declared: Any) -> None:
        self.yaml.write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")

    def rows(self, days: int = 2, a_day: int = 40) -> list[dict[str, Any]]:
        start = datetime(2024, 1, 1, tzinfo=UTC)
        return [
            {
                "id": f"i{n}",
                "at": (start + timedelta(seconds=n * 86_400 / a_day)).isoformat(),
                "item": "abcd"[n % 4],
                "hit": int(n % 3 == 0),
            }
            for n in range(days * a_day)
        ]

    def save(self, rows: list[dict[str, Any]]) -> None:
        with (self.data / "toy.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def store(self, versions: int = 0, champions: int = 0) -> LineStore:
        store = LineStore(Path(os.environ["HEADRACE_HOME"]) / "lines" / "toy", "toy")
        for n in range(versions):
            version = store.publish(
                {"w": np.full(4, n, dtype=np.float32)},
                parent=None,
                from_tick=0,
                to_tick=1,
                excluded=[],
                watermark_us=0,
                event_at_us=0,
                feature_service="toy_v1",
                code="test",
                rows=1,
                metrics={},
            )
            if n < champions:
                store.advance(store.champion(), version.version, "promote", "test")
        return store

    def headrace(self, *arguments: str | Path) -> Ended:
        self._capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["headrace", *map(str, arguments)])
            cli.main()
        told = self._capsys.readouterr()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Ended(code, told.out, told.err)

    def refuses(self, code: int, words: list[str], *arguments: str | Path) -> str:
        """The one line on stderr of a call that is refused with this code and these words."""
        before = self._files()
        ended = self.headrace(*arguments)
        assert (ended.code, ended.out) == (code, "")
        assert ended.err.startswith("headrace: ")
        assert ended.err.count("\n") == 1
        assert "Traceback" not in ended.err
        for word in words:
            assert word in ended.err
        assert self._files() == before
        return ended.err

    def replay(self, *more: str | Path) -> tuple[str | Path, ...]:
        return ("replay", "--line", self.yaml, "--data", self.data, "--json", self.result, *more)

    def _files(self) -> list[str]:
        return sorted(str(path) for path in self.root.rglob("*"))


def changed(path: str, value: Any) -> dict[str, Any]:
    """The toy line with one key (dots lead inwards) set to another value."""
    declared: dict[str, Any] = json.loads(json.dumps(TOY))
    inner: Any = declared
    *outer, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    for part in outer:
        inner = inner[part]
    inner[last] = value
    return declared
