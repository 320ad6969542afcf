"""A world of clicks with a known logistic law: 13 numbers and 26 Zipf id fields.

Written as .npy files, which every engine's process maps: `ids` int64 (rows, 26), `numbers`
float64 (rows, 13), `buckets` int64 (rows, 13), `labels` float32 (rows,). The later rows, which
nobody learns, give the AUC.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench._measure import SEED

FIELDS: Final = 26
NUMBERS: Final = 13
CROSSES: Final = ((4, 9), (5, 8), (6, 7), (3, 10), (2, 11), (5, 6), (4, 7), (8, 9))
"""Pairs of id fields whose combinations have an effect of their own."""
_SMALLEST, _LARGEST = 10, 1_100_000
_ZIPF: Final = 1.05
_BUCKETS: Final = 16
_PIECE: Final = 100_000


def write(folder: Path, rows: int, later: int) -> dict[str, Any]:
    """Draw the rows and write them; says how many distinct ids came and the law's own AUC."""
    draw = np.random.default_rng(SEED)
    sizes = np.geomspace(_SMALLEST, _LARGEST, FIELDS).astype(np.int64)
    effects = [draw.normal(0, 0.22, size).astype(np.float32) for size in sizes]
    crossed = draw.normal(0, 0.35, (len(CROSSES), 1 << 16)).astype(np.float32)
    slopes = draw.normal(0, 0.12, NUMBERS)
    total = rows + later
    files = {
        "ids": _file(folder, "ids", np.int64, (total, FIELDS)),
        "numbers": _file(folder, "numbers", np.float64, (total, NUMBERS)),
        "buckets": _file(folder, "buckets", np.int64, (total, NUMBERS)),
        "labels": _file(folder, "labels", np.float32, (total,)),
    }
    edges = np.linspace(-2, 2, _BUCKETS - 1)
    truth = np.empty(total)
    for start in range(0, total, _PIECE):
        part = slice(start, min(start + _PIECE, total))
        count = part.stop - start
        # the inverse of a power law's distribution, cut at the field's size
        power = 1 - _ZIPF
        shares = draw.random((count, FIELDS))
        ranks = (((sizes + 1.0) ** power - 1) * shares + 1) ** (1 / power)
        ids = np.minimum(ranks.astype(np.int64) - 1, sizes - 1)
        numbers = draw.standard_normal((count, NUMBERS))
        logit = np.sin(2 * numbers) @ slopes + np.abs(numbers) @ slopes[::-1] - 1.3
        for field, effect in enumerate(effects):
            logit += effect[ids[:, field]]
        for effect, (left, right) in zip(crossed, CROSSES, strict=True):
            logit += effect[(ids[:, left] * 40_503 + ids[:, right] * 25_261) % len(effect)]
        truth[part] = logit
        files["ids"][part], files["numbers"][part] = ids, numbers
        files["buckets"][part] = np.searchsorted(edges, numbers)
        files["labels"][part] = draw.random(count) < 1 / (1 + np.exp(-logit))
    for file in files.values():
        file.flush()
    seen = sum(np.unique(files["ids"][:rows, field]).size for field in range(FIELDS))
    return {"distinct ids": seen, "auc of the law": auc(files["labels"][rows:], truth[rows:])}


def read(folder: Path) -> dict[str, NDArray[Any]]:
    """The written arrays, mapped."""
    names = ("ids", "numbers", "buckets", "labels")
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}


def auc(labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """Area under the ROC curve by ranks; equal scores share theirs."""
    distinct, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    positive = labels > 0
    count = int(positive.sum())
    area = ranks[place][positive].sum() - count * (count + 1) / 2
    return float(area / (count * (len(scores) - count))) if distinct.size else float("nan")


def _file(folder: Path, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
    path = folder / f"{name}.npy"
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
