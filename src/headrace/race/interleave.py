"""Team-draft interleaving: two rankings share one list, and clicks tell which team picked better.

Far fewer requests tell two rankings apart than by a split, for each user judges both (Radlinski,
Kurup, Joachims 2008). It compares rankings, not probabilities.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def team_draft(left: ArrayLike, right: ArrayLike, key: str) -> tuple[Ints, Bools]:
    """Let two scorers pick in turns, each its best candidate that is left.

    left, right: scores (n,) of the same candidates. `key` fixes the coin that says who picks
    first in each round of two, so a request gives the same list again. Returns `order` (n,), the
    candidates from the top, and `by_right` (n,), whether the right one picked the candidate, by
    candidate (not by place).
    """
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    wishes = [np.argsort(-a, kind="stable").tolist(), np.argsort(-b, kind="stable").tolist()]
    places, taken = [0, 0], np.zeros(a.size, dtype=np.bool_)
    order: list[int] = []
    by_right = np.zeros(a.size, dtype=np.bool_)
    while len(order) < a.size:
        first = _coin(key, len(order) // 2)
        for team in (first, 1 - first):
            if len(order) == a.size:
                break
            while taken[wishes[team][places[team]]]:
                places[team] += 1
            pick = wishes[team][places[team]]
            taken[pick], by_right[pick] = True, team == 1
            order.append(pick)
    return np.array(order, dtype=np.int64), by_right


def preferences(
    requests: ArrayLike, clicked: ArrayLike, by_right: ArrayLike
) -> NDArray[np.float64]:
    """How far each request prefers the right team: (right − left) / all of its clicks, in [-1, 1].

    Arguments are (n,) by row: the request's name or code, whether it was clicked, whose pick it
    was. A request without a click prefers nobody, 0. In rising order of the requests' codes; give
    codes that rise with time to feed `sequential.bounded`.
    """
    codes, code = np.unique(np.asarray(requests), return_inverse=True)
    clicks = np.asarray(clicked, dtype=np.float64)
    sign = np.where(np.asarray(by_right, dtype=np.bool_), 1.0, -1.0)
    balance = np.bincount(code, weights=clicks * sign, minlength=codes.size)
    total = np.bincount(code, weights=clicks, minlength=codes.size)
    return balance / np.maximum(total, 1.0)


def _coin(key: str, turn: int) -> int:
    return hashlib.blake2b(f"{key}\x1f{turn}".encode(), digest_size=1).digest()[0] & 1
