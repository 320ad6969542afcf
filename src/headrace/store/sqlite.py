"""SQLite as online store: Feast's own, written in bulk, with `ttl` and a mark of what it holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from feast import FeatureView
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.repo_config import RepoConfig

from headrace.declaration import MISSING
from headrace.store.encode import by_value, entity_keys, int_of, int_values
from headrace.store.latest import Ints, nothing
from headrace.store.marks import check_mark, newest_us
from headrace.store.pushed import Holding
from headrace.store.ttl import HonoursTtl

CACHE_KIB: Final = 64_000  # SQLite's 2 MB do not hold the pages that one tick touches
_COLUMNS: Final = ("entity_key", "feature_name", "value", "value_text", "event_ts", "created_ts")


class HeadraceSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):  # type: ignore[misc]
    """Feast's settings of SQLite; `path` is the file, `timeout_s` how long a lock is waited for."""

    type: Literal["headrace.store.sqlite.HeadraceSqliteOnlineStore"] = (
        "headrace.store.sqlite.HeadraceSqliteOnlineStore"
    )
    timeout_s: float = 5.0


class HeadraceSqliteOnlineStore(HonoursTtl, SqliteOnlineStore):  # type: ignore[misc]
    """Feast's tables, one row for each feature of each key, and a table of marks."""

    def _get_conn(self, config: RepoConfig) -> sqlite3.Connection:
        """The connection, with a write-ahead log, so that readers never wait for the writer.

        Commits do not wait for the disk: what a power cut takes, it takes with its mark.
        """
        is_new = not self._conn
        connection: sqlite3.Connection = super()._get_conn(config)
        if is_new:
            with self._or_anew(connection):
                wait_ms = int(config.online_store.timeout_s * 1_000)
                connection.execute(f"PRAGMA busy_timeout={wait_ms}")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS headrace_marks "
                    "(view TEXT PRIMARY KEY, at_us INTEGER)"
                )
        return connection

    @contextmanager
    def _or_anew(self, connection: sqlite3.Connection) -> Iterator[None]:
        """After a failure the next call opens the file again: another may lie there then."""
        try:
            yield
        except sqlite3.Error:
            self._conn = None
            connection.close()
            raise

    def check(self, config: RepoConfig) -> None:
        """Open the file."""
        self._get_conn(config)

    def mark_us(self, config: RepoConfig, view: str) -> int | None:
        """Time of the newest row that `write_rows` wrote to the view; None where it never did."""
        found = self._get_conn(config).execute(
            "SELECT at_us FROM headrace_marks WHERE view = ?", (view,)
        )
        row = found.fetchone()
        return None if row is None else int(row[0])

    def write_rows(
        self, config: RepoConfig, view: FeatureView, rows: pa.Table, after_us: int | None
    ) -> int:
        """Replace the rows of these keys in one transaction; return the new mark.

        `rows` holds join keys, `event_timestamp` and int64 features without nulls. Raises
        `EnvironmentFault`, and writes nothing, where the mark is not `after_us` any more.
        """
        connection = self._get_conn(config)
        table = compute_table_id(config.project, view)
        updates = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[2:])
        insert = (
            f'INSERT INTO "{table}" ({", ".join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?) '
            f"ON CONFLICT (entity_key, feature_name) DO UPDATE SET {updates}"
        )
        mark_us = newest_us(rows, after_us)
        with connection:
            connection.executemany(insert, _statements(view, rows))
            check_mark(view.name, self.mark_us(config, view.name), after_us)
            connection.execute(
                "INSERT OR REPLACE INTO headrace_marks VALUES (?, ?)", (view.name, mark_us)
            )
        return mark_us

    def read_rows(
        self,
        config: RepoConfig,
        asked: Sequence[tuple[FeatureView, Sequence[bytes]]],
        meanwhile: Callable[[], None] = nothing,
    ) -> tuple[list[int | None], list[Ints]]:
        """Each view's mark, and the rows of its keys with features in the order of the view.

        The marks are read first: all that was written until then is in the rows. `MISSING` stands
        where nothing is. SQLite leaves no time between, so `meanwhile` is called before.
        """
        meanwhile()
        connection = self._get_conn(config)
        with self._or_anew(connection):
            marks: dict[str, int] = dict(
                connection.execute("SELECT view, at_us FROM headrace_marks").fetchall()
            )
            rows = [_rows(connection, config, view, keys) for view, keys in asked]
        return [marks.get(view.name) for view, _ in asked], rows

    def holdings(self) -> dict[str, Holding]:
        """Nothing is held: SQLite is in this process."""
        return {}

    def clear(self, config: RepoConfig, view: FeatureView) -> None:
        """Delete a view's rows and its mark."""
        with self._get_conn(config) as connection:
            connection.execute(f'DELETE FROM "{compute_table_id(config.project, view)}"')
            connection.execute("DELETE FROM headrace_marks WHERE view = ?", (view.name,))

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        *rest: Any,
        **named: Any,
    ) -> None:
        """Feast's create and drop; a dropped view loses its mark."""
        super().update(config, tables_to_delete, tables_to_keep, *rest, **named)
        with self._get_conn(config) as connection:
            connection.executemany(
                "DELETE FROM headrace_marks WHERE view = ?",
                [(view.name,) for view in tables_to_delete],
            )


def _rows(
    connection: sqlite3.Connection, config: RepoConfig, view: FeatureView, keys: Sequence[bytes]
) -> Ints:
    held: dict[bytes, dict[str, int]] = {key: {} for key in keys}
    statement = (
        "SELECT entity_key, feature_name, value "
        f'FROM "{compute_table_id(config.project, view)}" '
        f"WHERE entity_key IN ({', '.join('?' * len(keys))})"
    )
    for key, name, value in connection.execute(statement, list(keys)):
        held[key][name] = int_of(value)
    names = [field.name for field in view.features]
    rows = [[held[key].get(name, MISSING) for name in names] for key in keys]
    return np.array(rows, np.int64)


def _statements(view: FeatureView, rows: pa.Table) -> Iterator[tuple[object, ...]]:
    """Feast's table rows in the order of their keys: a random order costs four times as much."""
    keys = entity_keys(view, rows)
    seconds = by_value(rows["event_timestamp"].cast(pa.int64()), lambda us: us // 1_000_000)
    features = [
        (field.name, int_values(rows[field.name]), by_value(rows[field.name], str))
        for field in view.features
    ]
    for row in sorted(range(len(keys)), key=keys.__getitem__):
        for name, values, texts in features:
            yield keys[row], name, values[row], texts[row], seconds[row], None
