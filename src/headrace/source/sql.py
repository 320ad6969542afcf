"""SQL over a loaded file: where, explode, derive, and one SELECT that names a wrong expression."""

from __future__ import annotations

import re
from collections.abc import Mapping

import duckdb
import pyarrow as pa

from headrace.declaration import Explode, FileSpec, names_of
from headrace.errors import InputError

_ABSENT = re.compile(r'Referenced (?:column|table) "([^"]+)" not found')
_WORD = re.compile(r"[A-Za-z_]\w*")
_CONSTANTS = frozenset({"null", "true", "false"})


def quote_name(name: str) -> str:
    """A SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """A SQL text literal."""
    return "'" + text.replace("'", "''") + "'"


def columns_of(con: duckdb.DuckDBPyConnection, stage: str) -> dict[str, str]:
    """Names and DuckDB types of a relation's columns, bookkeeping (`__…`) left out."""
    rows = con.execute(f"DESCRIBE SELECT * FROM {stage}").fetchall()
    return {str(row[0]): str(row[1]) for row in rows if not str(row[0]).startswith("__")}


def fitted(con: duckdb.DuckDBPyConnection, stage: str, where: str, sql: str) -> tuple[str, str]:
    """The expression as SQL that can stand anywhere, and its DuckDB type.

    One that is just a column's name is quoted, so a column may be called `order`, `at` or
    `Item Name`. Raises `InputError` naming `where` (its place in the YAML) if it does not bind.
    """
    # a single word is a column: without one, SQL would take `user` for the name of the session's
    name = sql.strip().lower()
    columns = columns_of(con, stage)
    found = [column for column in columns if column.lower() == name]
    if not found and _WORD.fullmatch(name) and name not in _CONSTANTS and not name.startswith("__"):
        raise _lacks(where, sql, sql.strip(), columns)
    fit = quote_name(found[0]) if found else f"({sql})"
    try:
        rows = con.execute(f"DESCRIBE SELECT {fit} AS given FROM {stage}").fetchall()
    except duckdb.Error as problem:
        raise explain(con, stage, where, sql, problem) from None
    return fit, str(rows[0][1])


def explain(
    con: duckdb.DuckDBPyConnection, stage: str, where: str, sql: str, problem: duckdb.Error
) -> InputError:
    """The error that names the expression, what is wrong with it, and what there is."""
    columns = columns_of(con, stage)
    absent = _ABSENT.search(str(problem))
    if absent is not None:
        return _lacks(where, sql, absent[1], columns)
    first = str(problem).split("\n", maxsplit=1)[0]
    return InputError(
        f"{where}: {sql!r} fails: {first}; correct the expression (TRY_CAST(x AS type) turns what "
        f"does not fit into NULL); the columns: {_listed(columns)}"
    )


def _lacks(where: str, sql: str, name: str, columns: Mapping[str, str]) -> InputError:
    return InputError(
        f"{where}: {sql!r} needs the column {name!r}, which the file lacks; "
        f"correct the name or the file; its columns: {_listed(columns)}"
    )


def _listed(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items())


def select(
    con: duckdb.DuckDBPyConnection, stage: str, wanted: Mapping[str, tuple[str, str]]
) -> pa.Table:
    """One Arrow column for each name of `wanted` (its place in the YAML, its SQL), in row order.

    Raises `InputError` for the first expression that does not bind or fails on a row.
    """
    body = ", ".join(f"{sql} AS {quote_name(name)}" for name, (_, sql) in wanted.items())
    query = f"SELECT __row, {body} FROM {stage} ORDER BY __row"
    try:
        return con.sql(query).to_arrow_table().combine_chunks()
    except duckdb.Error:
        for where, sql in wanted.values():
            _run(con, stage, where, sql)
        raise


def _run(con: duckdb.DuckDBPyConnection, stage: str, where: str, sql: str) -> None:
    try:
        con.execute(f"SELECT count({sql}) FROM {stage}").fetchall()
    except duckdb.Error as problem:
        raise explain(con, stage, where, sql, problem) from None


def shape(con: duckdb.DuckDBPyConnection, file: FileSpec, kind: str) -> tuple[str, int, int]:
    """Apply `where`, `explode` and `derive` to the table `kind`.

    `where` runs first (later expressions need not cope with rows that are left out), unless it
    reads what explode or derive make. Returns the relation, the rows excluded and the rows
    that exploded to nothing.
    """
    stage, excluded, empty = quote_name(kind), 0, 0
    made = {name.lower() for name in file.derive}
    made |= {file.explode.into.lower()} if file.explode is not None else set()
    late = file.where is not None and bool(names_of(file.where) & made)
    if file.where is not None and not late:
        stage, excluded = _keep(con, stage, kind, file.where)
    if file.explode is not None:
        stage, empty = _explode(con, stage, kind, file.explode)
    for name, sql in file.derive.items():
        stage = _derive(con, stage, kind, name, sql)
    if file.where is not None and late:
        stage, excluded = _keep(con, stage, kind, file.where)
    return stage, excluded, empty


def count_rows(con: duckdb.DuckDBPyConnection, stage: str) -> int:
    """Number of rows of a relation."""
    return int(con.execute(f"SELECT count(*) FROM {stage}").fetchall()[0][0])


def _keep(con: duckdb.DuckDBPyConnection, stage: str, kind: str, sql: str) -> tuple[str, int]:
    target, where = quote_name(f"{kind} kept"), f"source.{kind}.where"
    fit, _ = fitted(con, stage, where, sql)
    try:
        con.execute(f"CREATE TABLE {target} AS SELECT * FROM {stage} WHERE {fit}").fetchall()
    except duckdb.Error as problem:
        raise explain(con, stage, where, sql, problem) from None
    return target, count_rows(con, stage) - count_rows(con, target)


def _explode(
    con: duckdb.DuckDBPyConnection, stage: str, kind: str, explode: Explode
) -> tuple[str, int]:
    target, column = quote_name(f"{kind} pieces"), quote_name(explode.column)
    into = quote_name(explode.into)
    pieces = f"string_split(CAST({column} AS VARCHAR), {quote_text(explode.separator)})"
    inner = f"SELECT * RENAME (__row AS __line), unnest({pieces}) AS {into} FROM {stage}"
    outer = f"SELECT row_number() OVER () AS __row, * FROM ({inner}) WHERE {into} <> ''"
    try:
        con.execute(f"CREATE TABLE {target} AS {outer}").fetchall()
    except duckdb.Error as problem:
        where = f"source.{kind}.explode.column"
        raise explain(con, stage, where, explode.column, problem) from None
    used = int(con.execute(f"SELECT count(DISTINCT __line) FROM {target}").fetchall()[0][0])
    return target, count_rows(con, stage) - used


def _derive(con: duckdb.DuckDBPyConnection, stage: str, kind: str, name: str, sql: str) -> str:
    target, quoted = quote_name(f"{kind} with {name}"), quote_name(name)
    present = name.lower() in {column.lower() for column in columns_of(con, stage)}
    rest = f"* EXCLUDE ({quoted})" if present else "*"
    where = f"source.{kind}.derive.{name}"
    fit, _ = fitted(con, stage, where, sql)
    try:
        con.execute(
            f"CREATE TABLE {target} AS SELECT {rest}, {fit} AS {quoted} FROM {stage}"
        ).fetchall()
    except duckdb.Error as problem:
        raise explain(con, stage, where, sql, problem) from None
    return target
