"""What the documents show is run: the lines of docs/lines.md are declared and replayed."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from headrace.declaration import LineSpec
from headrace.replay.stream import replay
from headrace.settings import load_line

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLES = re.findall(r"```yaml\n(line: .*?)```", (DOCS / "lines.md").read_text(), re.DOTALL)
START = datetime(2026, 3, 2, 6, tzinfo=UTC)
ROWS = 400


def example(name: str, folder: Path) -> LineSpec:
    (text,) = (text for text in EXAMPLES if text.startswith(f"line: {name}\n"))
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return load_line(path)


def write_orders(folder: Path, rng: np.random.Generator) -> None:
    seen = [START + timedelta(minutes=5 * row) for row in range(ROWS)]
    pd.DataFrame(
        {
            "order_no": np.arange(ROWS),
            "seen_ms": [int(at.timestamp() * 1000) for at in seen],
            "buyer_code": [f"b{n}" for n in rng.integers(0, 20, ROWS)],
            "price": rng.lognormal(3, 1, ROWS),
            "returned": (rng.random(ROWS) < 0.3).astype(int),
        }
    ).to_parquet(folder / "orders.parquet")


def write_banners(folder: Path, rng: np.random.Generator) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    at = [START + timedelta(minutes=2 * row) for row in range(ROWS)]
    shown = pd.DataFrame(
        {
            "show_id": [f"s{row}" for row in range(ROWS)],
            "shown_at": [
                moment.astimezone(berlin).strftime("%d.%m.%Y %I:%M:%S %p") for moment in at
            ],
            "place": rng.choice(["top", "side"], ROWS),
            "banner": rng.integers(1, 9, ROWS),
        }
    )
    shown.to_csv(folder / "shown.tsv.gz", sep="\t", header=False, index=False)
    clicks = [
        {"show": f"s{row}", "clicked_at": (at[row] + timedelta(seconds=20)).isoformat()}
        for row in np.flatnonzero(rng.random(ROWS) < 0.2)
    ]
    (folder / "clicks.jsonl").write_text("\n".join(map(json.dumps, clicks)), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write"), [("orders", write_orders), ("banners", write_banners)])
def test_the_examples_replay(name: str, write: object, tmp_path: Path) -> None:
    assert callable(write)
    write(tmp_path, np.random.default_rng(7))
    result = replay(example(name, tmp_path), tmp_path, lambda *_: None)
    assert result["rows"] == ROWS
    assert result["counts"]["unaccounted"] == 0
    assert all(np.isfinite(policy["logloss"]) for policy in result["policies"].values())


def test_every_declared_key_is_documented() -> None:
    text = (DOCS / "lines.md").read_text()
    missing = [
        name
        for model in (LineSpec, *_parts(LineSpec))
        for name in model.model_fields
        if not re.search(rf"\b{name}\b", text)
    ]
    assert missing == []


def _parts(model: type) -> list[type]:
    from headrace.declaration.base import Declared

    found, queue = [], list(Declared.__subclasses__())
    while queue:
        part = queue.pop()
        found.append(part)
        queue += part.__subclasses__()
    return [part for part in found if part is not model]
