"""The window kernel against a naive oracle, and against itself under any split of the log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_oracle import window_values

from headrace.declaration import LineSpec
from headrace.errors import InputError, IntegrityError
from headrace.hashes import hash64
from headrace.windows import WindowState
from tests.unit.toy_windows import (
    KEYS,
    SCHEMA,
    SPEC,
    WINDOWS,
    assert_same_state,
    pieces,
    spec_with,
    state_of,
    table,
)

MOMENT = st.builds(
    lambda ms, us: ms * 1_000 + us, st.integers(0, 40), st.sampled_from([0, 0, 0, 1])
)
USER = st.sampled_from(["a", "b", "", None])
ITEM = st.sampled_from([0, 1, -1, 2**62, None])
EVENT = st.fixed_dictionaries(
    {
        "knowledge_at": MOMENT,
        "event": st.sampled_from(["impression", "click", "mark"]),
        "value": st.integers(-(2**40), 2**40),
        "user": USER,
        "item": ITEM,
        "price": st.one_of(st.none(), st.integers(-(2**40), 2**40)),
        "note": st.sampled_from(["x", "y", "", None]),
    }
)
LOGS = st.lists(EVENT, max_size=60).map(lambda rows: sorted(rows, key=lambda r: r["knowledge_at"]))
TEXT_IDS: dict[Any, int] = {t: int(hash64(pa.array([t]))[0]) for t in ("x", "y", "")}
CUTS = st.lists(st.integers(0, 60), max_size=8)
QUERIES = st.lists(
    st.fixed_dictionaries({"user": USER, "item": ITEM, "at": MOMENT}), min_size=1, max_size=25
)
ALL_KEYS = pa.Table.from_pylist(
    [{"user": u, "item": i} for u in ("a", "b", "", None) for i in (0, 1, -1, 2**62, None)], KEYS
)


def at_moment(state: WindowState, at_us: int) -> pa.Table:
    return state.values(ALL_KEYS, np.full(ALL_KEYS.num_rows, at_us, dtype=np.int64))


@settings(max_examples=200, deadline=None)
@given(LOGS, CUTS, QUERIES)
def test_kernel_equals_the_naive_oracle(rows: Any, cuts: Any, queries: Any) -> None:
    at_us = [query["at"] for query in queries]
    keys = pa.Table.from_pylist(queries, KEYS)
    got = state_of(rows, cuts).values(keys, np.array(at_us, dtype=np.int64))
    assert got.column_names == [window["name"] for window in WINDOWS]
    expected = window_values(SPEC.windows, rows, queries, at_us)
    assert got.to_pylist() == [
        {name: TEXT_IDS.get(value, value) for name, value in row.items()} for row in expected
    ]


@settings(max_examples=100, deadline=None)
@given(LOGS, CUTS, st.sampled_from(["impression", "click"]), st.integers(0, 12))
def test_each_event_asked_at_its_own_moment_equals_the_naive_oracle(
    rows: Any, cuts: Any, event: str, seed: int
) -> None:
    # a replay asks so; in the order of the log and, by the seed, in any other
    asked = [
        row for row in rows if row["event"] == event and None not in (row["user"], row["item"])
    ]
    last = max((cut for cut in cuts if cut < len(rows)), default=0)
    newest = [row for row in rows[last:] if row in asked]
    for queries in (asked, newest, list(np.random.default_rng(seed).permutation(asked))):
        at_us = np.array([query["knowledge_at"] for query in queries], dtype=np.int64)
        keys = table(queries).select(KEYS.names)
        got = state_of(rows, cuts).values(keys, at_us)
        expected = window_values(SPEC.windows, rows, queries, at_us.tolist())
        assert got.to_pylist() == [
            {name: TEXT_IDS.get(value, value) for name, value in row.items()} for row in expected
        ]


@settings(max_examples=100, deadline=None)
@given(LOGS, CUTS, CUTS, st.integers(0, 8), QUERIES)
def test_batch_equals_micro_batches_with_a_restart_in_the_middle(
    rows: Any, cuts: Any, other_cuts: Any, restart_after: int, queries: Any
) -> None:
    keys = pa.Table.from_pylist(queries, KEYS)
    at_us = np.array([query["at"] for query in queries], dtype=np.int64)
    restarted = state_of([])
    for place, piece in enumerate(pieces(rows, cuts)):
        restarted.append(piece)
        if place == restart_after:
            restarted = WindowState.restore(SPEC, restarted.checkpoint())
    assert_same_state(restarted, state_of(rows, cuts))
    batch = state_of(rows).values(keys, at_us)
    assert restarted.values(keys, at_us).equals(batch)
    assert state_of(rows, other_cuts).values(keys, at_us).equals(batch)


@settings(max_examples=100, deadline=None)
@given(LOGS, CUTS, MOMENT, st.integers(0, 60_000))
def test_expire_changes_no_answer_from_that_moment_on(
    rows: Any, cuts: Any, before: int, later: int
) -> None:
    full, trimmed = state_of(rows, cuts), state_of(rows, cuts)
    trimmed.expire(before)
    for at_us in (before, before + later):
        assert at_moment(trimmed, at_us).equals(at_moment(full, at_us))
        for view in SPEC.views:
            assert trimmed.changed(view, before, at_us).equals(full.changed(view, before, at_us))
    assert_same_state(WindowState.restore(SPEC, trimmed.checkpoint()), trimmed)


@settings(max_examples=100, deadline=None)
@given(LOGS, CUTS)
def test_expiring_while_appending_changes_no_later_answer(rows: Any, cuts: Any) -> None:
    trimmed, seen = state_of([]), []
    for piece in pieces(rows, cuts):
        trimmed.append(piece)
        seen.append(piece)
        at_us = piece.column("knowledge_at")[-1].as_py() + 1
        trimmed.expire(at_us)
        full = state_of(pa.concat_tables(seen).to_pylist())
        assert at_moment(trimmed, at_us).equals(at_moment(full, at_us))
        assert at_moment(trimmed, at_us + 5_000).equals(at_moment(full, at_us + 5_000))


@settings(max_examples=100, deadline=None)
@given(LOGS, CUTS, MOMENT, MOMENT)
def test_changed_holds_every_key_whose_value_differs(
    rows: Any, cuts: Any, one: int, other: int
) -> None:
    since, until = min(one, other), max(one, other)
    state = state_of(rows, cuts)
    before, after = (at_moment(state, at_us).to_pylist() for at_us in (since, until))
    for view, features in SPEC.views.items():
        key, names = features[0].key, [feature.name for feature in features]
        found = [tuple(row.values()) for row in state.changed(view, since, until).to_pylist()]
        assert len(found) == len(set(found))
        for row, old, new in zip(ALL_KEYS.to_pylist(), before, after, strict=True):
            if any(old[name] != new[name] for name in names):
                assert tuple(row[part] for part in key) in found


def test_windows_are_half_open_at_both_ends() -> None:
    row = {"event": "impression", "value": 1, "user": "a", "item": 1, "price": 5, "note": "x"}
    state = state_of([{**row, "knowledge_at": 10_000}])
    for name, window_us in (("user_views_count_3", 3_000), ("user_views_count_20", 20_000)):
        counts = [
            at_moment(state, 10_000 + later_us).column(name)[1].as_py()
            for later_us in (0, 1, window_us, window_us + 1)
        ]
        assert counts == [0, 1, 1, 0]


def test_a_key_changes_in_the_microsecond_that_an_event_comes_or_leaves() -> None:
    row = {"event": "impression", "value": 1, "user": "a", "item": 1, "price": 5, "note": "x"}
    state = state_of([{**row, "knowledge_at": 100_000}])

    def changes(since_us: int, until_us: int) -> bool:
        found = state.changed("toy_by_user", since_us, until_us)
        return bool(found.to_pylist() == [{"user": "a"}])

    comes, leaves_short, leaves_long = 100_000, 103_000, 120_000
    for moment in (comes, leaves_short, leaves_long):
        assert changes(moment, moment + 1)
        assert not changes(moment - 1, moment)
        assert not changes(moment + 1, moment + 2)


def test_one_view_needs_only_its_own_key_columns() -> None:
    row = {"event": "impression", "value": 1, "user": "a", "item": 1, "price": 5, "note": "x"}
    rows = [{**row, "knowledge_at": 1_000}]
    keys, at_us = pa.table({"item": [1, 2]}), np.array([2_000, 2_000])
    got = state_of(rows).values(keys, at_us, view="toy_by_item")
    assert got.to_pydict() == {
        "item_clicks_count_7": [0, 0],
        "item_price_sum_7": [0, 0],
        "item_price_sum_11": [5, 0],
        "item_price_max_1_7ms": [-(2**63), -(2**63)],
        "item_note_distinct_1_11ms": [1, 0],
    }
    restricted = WindowState(SPEC, views=["toy_by_item"])
    restricted.append(table(rows))
    assert restricted.values(keys, at_us).equals(got)
    with pytest.raises(InputError, match="no key column 'user'"):
        state_of(rows).values(keys, at_us)


def test_an_append_from_the_past_is_refused() -> None:
    row = {"event": "impression", "value": 1, "user": "a", "item": 1, "price": 5, "note": "x"}
    state = state_of([{**row, "knowledge_at": 5_000}])
    state.append(table([{**row, "knowledge_at": 5_000}]))
    with pytest.raises(InputError, match="knowledge_at 4999"):
        state.append(table([{**row, "knowledge_at": 4_999}]))


def test_a_checkpoint_of_other_windows_is_refused() -> None:
    tables = state_of([]).checkpoint()
    with pytest.raises(IntegrityError, match="toy_by_user"):
        WindowState.restore(spec_with([{**WINDOWS[0], "window": "4ms"}, *WINDOWS[1:]]), tables)
    with pytest.raises(IntegrityError, match="rebuild the state"):
        WindowState.restore(SPEC, {})


def test_runs_stay_few_and_keep_their_bytes_under_their_name() -> None:
    rng = np.random.default_rng(3)
    state, written, most = WindowState(SPEC), {}, 0
    for tick in range(200):
        size = int(rng.integers(1, 20))
        state.append(
            pa.table(
                {
                    "knowledge_at": np.sort(rng.integers(tick * 100, tick * 100 + 100, size)),
                    "event": rng.choice(["impression", "click"], size),
                    "value": rng.integers(0, 9, size),
                    "user": rng.integers(0, 30, size).astype(str),
                    "item": rng.integers(0, 30, size),
                    "price": rng.integers(0, 9, size),
                    "note": rng.choice(["x", "y"], size),
                }
            ).cast(SCHEMA)
        )
        state.expire(tick * 100 + 100)
        tables = state.checkpoint()
        most = max(most, len(tables))
        for name, rows in tables.items():
            if name != "meta":
                assert written.setdefault(name, rows).equals(rows)
    tracks = 12
    assert most <= 1 + tracks * 12


def test_long_runs_are_merged_within_a_share_of_the_longest_window() -> None:
    row = {"event": "impression", "value": 1, "user": "a", "item": 1, "price": 5, "note": "x"}
    state, size = WindowState(SPEC, views=["toy_by_user"]), 20_000  # 20 ms
    batch = pa.concat_tables([table([{**row, "knowledge_at": 0}])] * size).combine_chunks()
    for start_us in range(0, 40_000, 1_000):
        times = np.linspace(start_us, start_us + 900, size).astype(np.int64)
        state.append(batch.set_column(0, SCHEMA.field(0), pa.array(times)))
        state.expire(start_us)
    spans = []
    for name, rows in state.checkpoint().items():
        if name.startswith("toy_by_user.impression.0"):
            times = rows.column("_knowledge_at").to_numpy()
            spans.append(times[-1] - times[0])
    assert 2_500 < max(spans) <= 5_000  # merged, and none over more than a quarter
    assert len(spans) <= 12


def test_rows_that_expire_before_the_next_append_are_never_merged() -> None:
    row = {"event": "impression", "value": 1, "user": "a", "item": 1, "price": 5, "note": "x"}
    state = WindowState(SPEC, views=["toy_by_user"])
    for at_us in (0, 1):
        state.append(table([{**row, "knowledge_at": at_us}]))
    names = [name for name in state.checkpoint() if name.startswith("toy_by_user.impression.0")]
    assert [name.rpartition(".")[2] for name in names] == [
        "000000000000-000000000001",
        "000000000001-000000000002",
    ]
    state.expire(1_000_000)
    state.append(table([{**row, "knowledge_at": 1_000_000}]))
    names = [name for name in state.checkpoint() if name.startswith("toy_by_user.impression.0")]
    assert [name.rpartition(".")[2] for name in names] == ["000000000002-000000000003"]


def test_no_questions_get_a_row_for_none() -> None:
    row = {"event": "impression", "value": 1, "user": "a", "item": 1, "price": 5, "note": "x"}
    for rows in ([], [{**row, "knowledge_at": 1}]):
        values = state_of(rows).values(KEYS.empty_table(), np.array([], dtype=np.int64))
        assert (values.num_rows, values.num_columns) == (0, len(WINDOWS))


def test_runs_of_one_column_are_not_taken_for_those_of_all_rows() -> None:
    # names of tables: `toy_by_user.click.0-9` and `toy_by_user.click.note.0-9`
    row = {"event": "click", "value": 1, "user": "a", "item": 1, "price": 5}
    rows = [{**row, "knowledge_at": at, "note": note} for at, note in ((1, "x"), (2, None))]
    restored = WindowState.restore(SPEC, state_of(rows).checkpoint())
    assert_same_state(restored, state_of(rows))
    names = {name for name in restored.checkpoint() if name.startswith("toy_by_user.click")}
    assert names == {
        "toy_by_user.click.000000000000-000000000002",
        "toy_by_user.click.note.000000000000-000000000001",
    }


def test_a_declaration_without_ranks_is_written_as_before_there_were_ranks() -> None:
    # checkpoints compare this text; models and Feast objects carry digests of it
    assert SPEC.windows[0].model_dump_json() == (
        '{"name":"user_views_count_3","key":["user"],"event":"impression","aggregate":"count",'
        '"column":"value","window":"3ms"}'
    )
    assert LineSpec.model_validate_json(SPEC.model_dump_json()) == SPEC
