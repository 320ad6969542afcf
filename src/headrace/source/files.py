"""Find the files of a declaration and load them into DuckDB as they are."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.declaration import FileSpec
from headrace.errors import InputError
from headrace.source.sql import count_rows, quote_name, quote_text

_GZIP: Final = b"\x1f\x8b"
_FORMATS: Final = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
# dates and times stay text: DuckDB would guess 11/12/2019's month, and strptime needs text
_GUESSED: Final = "['NULL', 'BOOLEAN', 'BIGINT', 'DOUBLE', 'VARCHAR']"


@dataclass(frozen=True)
class Loaded:
    """Rows of a file, those among them that could not be parsed, and the first few of these."""

    rows: int
    unparsable: int
    shown: list[str]


def find_files(file: FileSpec, data_dir: Path) -> list[Path]:
    """The files that `path` (or glob) names below the data folder, in the order of their names.

    Raises `InputError` for none (listing what is there), for one outside, or for an empty one.
    """
    root = data_dir.resolve()
    if not root.is_dir():
        raise InputError(f"{data_dir}: no such data folder; give --data the folder of the files")
    is_glob = any(mark in file.path for mark in "*?[")
    given = Path(file.path)
    if given.is_absolute() or ".." in given.parts:
        raise InputError(
            f"path {file.path!r} leads out of the data folder {data_dir}; write it relative to it"
        )
    found = sorted(root.glob(file.path)) if is_glob else [root / file.path]
    found = [path for path in found if path.is_file()]
    if not found:
        there = [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file()]
        listed = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if there[20:] else "")
        raise InputError(
            f"{file.path}: no such file below {data_dir}; there is: {listed or 'nothing'}"
        )
    for path in found:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty; give one with a row for each event")
    return found


def load_table(
    con: duckdb.DuckDBPyConnection, file: FileSpec, paths: list[Path], kind: str
) -> Loaded:
    """Create the table `kind`: the columns of the file and `__row`, counted from 1.

    Raises `InputError` when the file is not what `format` says or holds no row.
    """
    named = ", ".join(str(path) for path in paths[:3]) + (" …" if paths[3:] else "")
    form = file.format or _format_of(paths[0])
    try:
        if form == "parquet":
            rejected = _load_parquet(con, paths, kind)
        elif form == "jsonl":
            rejected = _load_jsonl(con, paths, kind)
        else:
            rejected = _load_text(con, file, paths, kind, form)
    except (duckdb.Error, OSError, EOFError, zlib.error, pa.ArrowInvalid) as problem:
        first = str(problem).split("\n", maxsplit=1)[0]
        raise InputError(
            f"{named}: not readable as {form}: {first}; correct the file or "
            f"source.{kind}.format, separator, header, names or quoted"
        ) from None
    kept = count_rows(con, quote_name(kind))
    if kept == 0:
        hint = f"; the first that cannot be parsed: {rejected[0]}" if rejected else ""
        raise InputError(f"{named}: no rows{hint}; give a file with a row for each event")
    return Loaded(kept + len(rejected), len(rejected), rejected[:5])


def _format_of(path: Path) -> str:
    for suffix in reversed(path.suffixes):
        if suffix.lower() in _FORMATS:
            return _FORMATS[suffix.lower()]
    raise InputError(
        f"{path.name}: the name does not tell the format; give source's `format`: "
        "csv, tsv, jsonl or parquet"
    )


def _list(paths: list[Path]) -> str:
    return "[" + ", ".join(quote_text(str(path)) for path in paths) + "]"


def _is_gzip(path: Path) -> bool:
    # by content: files are renamed more often than repacked
    with path.open("rb") as stream:
        return stream.read(2) == _GZIP


def _compression(path: Path) -> str:
    return quote_text("gzip" if _is_gzip(path) else "none")


def _join(con: duckdb.DuckDBPyConnection, parts: list[str], kind: str) -> None:
    """One table of the files' tables, matched by column name, rows in the files' order."""
    rows = " UNION ALL BY NAME ".join(
        f"SELECT {number} AS __file, * FROM {part}" for number, part in enumerate(parts)
    )
    con.execute(
        f"CREATE TABLE {quote_name(kind)} AS SELECT * EXCLUDE (__file, __row), "
        f"row_number() OVER (ORDER BY __file, __row) AS __row FROM ({rows}) "
        "ORDER BY __file, __row"
    ).fetchall()
    for part in parts:
        con.execute(f"DROP TABLE {part}").fetchall()


def _load_text(
    con: duckdb.DuckDBPyConnection, file: FileSpec, paths: list[Path], kind: str, form: str
) -> list[str]:
    parts, shown = [], []
    for number, path in enumerate(paths):
        part = f"{kind}_{number}"
        options = [*_text_options(file, form), f"compression = {_compression(path)}"]
        options.append(f"rejects_table = '{part}_rejects', rejects_scan = '{part}_scans'")
        con.execute(
            f"CREATE TABLE {part} AS SELECT row_number() OVER () AS __row, * "
            f"FROM read_csv({quote_text(str(path))}, {', '.join(options)})"
        ).fetchall()
        rejects = con.execute(
            "SELECT line, any_value(error_message), any_value(csv_line) "
            f"FROM {part}_rejects GROUP BY line ORDER BY line"
        ).fetchall()
        shown += [
            f"{path.name} line {line}: {why}: {str(text)[:120]!r}" for line, why, text in rejects
        ]
        parts.append(part)
    _join(con, parts, kind)
    return shown


def _text_options(file: FileSpec, form: str) -> list[str]:
    separator = file.separator or {"csv": ",", "tsv": "\t"}[form]
    options = [
        f"delim = {quote_text(separator)}",
        "quote = '\"', escape = '\"'" if file.quoted else "quote = '', escape = ''",
        f"header = {'true' if file.header else 'false'}",
        f"nullstr = [{', '.join(quote_text(text) for text in file.missing)}]",
        f"auto_type_candidates = {_GUESSED}, sample_size = -1, skip = 0",
        "ignore_errors = true, store_rejects = true, rejects_limit = 0",
    ]
    if file.names:
        options.append(f"names = [{', '.join(quote_text(name) for name in file.names)}]")
    if file.types:
        types = ", ".join(f"{quote_text(k)}: {quote_text(v)}" for k, v in file.types.items())
        options.append(f"types = {{{types}}}")
    return options


def _load_jsonl(con: duckdb.DuckDBPyConnection, paths: list[Path], kind: str) -> list[str]:
    # read as lines, so that a line which is not an object can be counted and shown
    parts = []
    for number, path in enumerate(paths):
        part = f"{kind}_{number}"
        con.execute(
            f"CREATE TABLE {part} AS SELECT row_number() OVER () AS __row, line FROM read_csv("
            f"{quote_text(str(path))}, columns = {{'line': 'VARCHAR'}}, delim = '\x01', "
            "quote = '', escape = '', header = false, auto_detect = false, "
            f"max_line_size = 16000000, compression = {_compression(path)})"
        ).fetchall()
        parts.append(part)
    _join(con, parts, "lines")
    con.execute("DELETE FROM lines WHERE line IS NULL OR trim(line) = ''").fetchall()
    is_object = "CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE false END"
    structure = con.execute(
        f"SELECT json_group_structure(CAST(line AS JSON)) FROM lines WHERE {is_object}"
    ).fetchall()[0][0]
    bad = con.execute(
        f"SELECT __row, line FROM lines WHERE NOT ({is_object}) ORDER BY __row"
    ).fetchall()
    if structure is None:
        raise InputError(f"{paths[0]}: no line is a JSON object; give one object a line")
    con.execute(
        f"CREATE TABLE {quote_name(kind)} AS SELECT __row, unnest(from_json(CAST(line AS JSON), "
        f"{quote_text(str(structure))})) FROM lines WHERE {is_object} ORDER BY __row"
    ).fetchall()
    con.execute("DROP TABLE lines").fetchall()
    return [f"line {row}: not a JSON object: {str(line)[:120]!r}" for row, line in bad]


def _load_parquet(con: duckdb.DuckDBPyConnection, paths: list[Path], kind: str) -> list[str]:
    parts = []
    for number, path in enumerate(paths):
        part, body = f"{kind}_{number}", f"read_parquet({quote_text(str(path))})"
        if _is_gzip(path):
            unpacked = pq.read_table(pa.BufferReader(gzip.decompress(path.read_bytes())))
            con.register("unpacked", unpacked)
            body = "unpacked"
        con.execute(
            f"CREATE TABLE {part} AS SELECT row_number() OVER () AS __row, * FROM {body}"
        ).fetchall()
        parts.append(part)
    _join(con, parts, kind)
    return []
