"""Held rows of a view: which are let go, and when, as told by the pushes that are followed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from headrace.store import pushed
from headrace.store.pushed import Push, PushedRows, features_of, told

FEATURES = ("clicks", "shown")


def push(name: bytes, after_us: int, mark_us: int, rows: dict[bytes, tuple[int, int]]) -> Push:
    """An entry as Redis gives it."""
    columns = [np.array(column, np.int64) for column in zip(*rows.values(), strict=True)]
    fields = [b"after", b"%d" % after_us, b"mark", b"%d" % mark_us]
    return Push.of(
        name, fields + told(list(rows), columns, features_of(FEATURES)), features_of(FEATURES)
    )


def ask(held: PushedRows, keys: Sequence[bytes], mark_us: int, *pushes: Push) -> list[bytes]:
    """Read these keys, of which Redis holds 7 and 8; returns those that had to be read."""
    lacking = held.lacking(keys)
    if not held.resting and held.follow(mark_us, pushes):
        held.hold(lacking, np.tile(np.array([7, 8]), (len(lacking), 1)))
    return lacking


def test_a_chain_of_pushes_changes_what_is_held_and_nothing_else():
    held = PushedRows(FEATURES)
    assert ask(held, [b"a", b"bb"], 5) == [b"a", b"bb"]
    later = (
        push(b"1-0", 5, 6, {b"bb": (1, 2), b"unknown": (3, 4)}),
        push(b"2-0", 6, 9, {b"a": (0, 0)}),
    )
    assert ask(held, [b"bb", b"a"], 9, *later) == []
    assert held.rows([b"bb", b"a"]).tolist() == [[1, 2], [0, 0]]
    assert held.last == b"2-0"
    assert (held.holding.rows, held.holding.hits, held.holding.misses) == (2, 2, 2)


@pytest.mark.parametrize(
    ("mark_us", "pushes"),
    [
        (0, []),  # the store was emptied
        (6, []),  # somebody moved the mark and told nobody
        (6, [push(b"1-0", 4, 6, {b"a": (1, 1)})]),  # it follows another past
        (5, [Push(b"1-0", 0, 0, None, np.empty((0, 0), np.int64))]),  # Feast's own push
        (8, [push(b"1-0", 5, 6, {b"a": (1, 1)})]),  # one is missing
    ],
)
def test_where_the_chain_is_broken_all_is_let_go(mark_us: int, pushes: list[Push]):
    held = PushedRows(FEATURES)
    ask(held, [b"a"], 5)
    assert ask(held, [b"b"], mark_us, *pushes) == [b"b"]
    assert (len(held.lacking([b"a", b"b"])), held.last) == (2, None)


def test_as_many_pushes_as_are_kept_may_hide_others():
    held = PushedRows(FEATURES)
    ask(held, [b"a"], 5)
    each = [push(b"1-%d" % n, 5, 5, {b"b": (n, n)}) for n in range(pushed.PUSHES)]
    ask(held, [b"a"], 5, *each)
    assert held.last is None
    ask(held, [b"a"], 5)
    ask(held, [b"a"], 5, *each[1:])
    assert held.holding.rows == 1


def test_rows_of_other_features_and_of_large_pushes_are_not_told(monkeypatch: pytest.MonkeyPatch):
    fields = told([b"a"], [np.array([1]), np.array([2])], features_of(("other", "shown")))
    assert (
        Push.of(b"1-0", [b"after", b"", b"mark", b"5", *fields], features_of(FEATURES)).keys is None
    )
    monkeypatch.setattr(pushed, "PUSHED_ROWS", 1)
    assert told([b"a", b"b"], [np.arange(2), np.arange(2)], features_of(FEATURES)) == []


def test_a_view_whose_keys_hardly_return_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pushed, "TRIAL_ROWS", 10)
    monkeypatch.setattr(pushed, "REST_ROWS", 20)
    held, numbers = PushedRows(FEATURES), itertools.count()

    def strangers(count: int) -> None:
        for number in itertools.islice(numbers, count):
            assert ask(held, [b"%d" % number], 5) == [b"%d" % number]

    strangers(19)
    assert not held.resting
    assert held.holding.rows == 19
    strangers(1)
    assert held.resting
    assert held.holding.rows == 0
    strangers(20)
    assert not held.resting
    assert held.holding.rows == 1
    for _ in range(40):  # ten that return, for as long as it takes to fill and to judge
        ask(held, [b"x%d" % n for n in range(10)], 5)
    assert not held.resting
    assert held.holding.rows == 11


def test_rows_are_let_go_once_there_are_too_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pushed, "HELD_ROWS", 4)
    held = PushedRows(FEATURES)
    for n in range(5):
        ask(held, [b"%d" % n], 5)
    assert held.holding.rows == 5
    assert ask(held, [b"0", b"9"], 5) == [b"0", b"9"]
    assert held.rows([b"9", b"0"]).tolist() == [[7, 8], [7, 8]]
