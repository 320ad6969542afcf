"""What features there are, what each means, and what its newest values look like."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from headrace import parts
from headrace.declaration import MISSING, LineSpec, WindowFeature, in_words, write_duration
from headrace.errors import DeclarationError, InputError
from headrace.sample import TickManifest, head_tick, read_tick
from headrace.settings import Settings

STATISTICS_ROWS: Final = 100_000


@dataclass(frozen=True)
class Feature:
    """One feature of one line. `view` is Feast's, `entity` holds the columns of its key."""

    name: str
    kind: Literal["window", "request"]
    line: str
    view: str
    entity: tuple[str, ...]
    aggregate: str
    window: str | None = None
    ttl: str | None = None


def catalog(lines: dict[str, LineSpec]) -> list[Feature]:
    """All features of these lines, window features before request features."""
    found = []
    for spec in lines.values():
        ttl = None if spec.feature_ttl is None else write_duration(spec.feature_ttl)
        for view, windows in spec.views.items():
            for one in windows:
                what, window = f"{one.aggregate} {one.event}", write_duration(one.window)
                found.append(
                    Feature(one.name, "window", spec.line, view, one.key, what, window, ttl)
                )
        view = f"{spec.line}_inputs"
        for request in spec.request_features:
            found.append(Feature(request.name, "request", spec.line, view, (), request.kind))
    return found


def find(lines: dict[str, LineSpec], name: str) -> list[Feature]:
    """Features of that name, or of the view of that name. Raises `DeclarationError` for none."""
    features = catalog(lines)
    found = [feature for feature in features if name in (feature.name, feature.view)]
    if not found:
        known = {known for feature in features for known in (feature.name, feature.view)}
        raise DeclarationError(f"no feature or view {name!r}; {closest(name, known)}")
    return found


def closest(name: str, known: Iterable[str]) -> str:
    """A remedy for a name that is not known."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"


def describe(settings: Settings, spec: LineSpec, feature: Feature) -> dict[str, Any]:
    """A feature in words, who reads it, and statistics of its newest values (see `statistics`)."""
    every = (*spec.windows, *spec.request_features)
    declared = next(one for one in every if one.name == feature.name)
    computed = (
        f"by `headrace ingest` in each tick, pushed online and kept in features/{feature.view}"
        if feature.kind == "window"
        else f"when asked, online and in history, by Feast's on-demand view {feature.view}"
    )
    model = (*spec.model.categorical, *spec.model.numeric)
    readers = [one.name for one in spec.request_features if feature.name in one.inputs]
    return {
        **asdict(feature),
        "service": spec.feature_service,
        "meaning": in_words(spec, declared),
        "declared": declared.model_dump(mode="json"),
        "computed": computed,
        "read_by": [*readers, *(["the model"] if feature.name in model else [])],
        "statistics": statistics(settings, spec, feature),
    }


def statistics(settings: Settings, spec: LineSpec, feature: Feature) -> dict[str, Any] | None:
    """Of the newest rows (up to about 100,000); None where no tick has written any.

    Rows are those of the view's parts (a key's row is written when it changes), for a request
    feature those of the samples (as served). `empty_share`: without a value. Numbers have
    `min`, `p50`, `p95`, `max`; ids and hashes `distinct`. `newest_at`, `age_s`: of the newest row.
    """
    home = settings.line_home(spec.line)
    at = f"{feature.view}__at" if feature.kind == "window" else "served_at"
    found, rows = [], 0
    for manifest in _newest_first(settings, spec):
        path = (
            manifest.samples if feature.kind == "request" else manifest.features.get(feature.view)
        )
        if path is not None:
            found.append(parts.read(home / path, [feature.name, at]))
            rows += found[-1].num_rows
        if rows >= STATISTICS_ROWS:
            break
    if not rows:
        return None
    table = pa.concat_tables(found)
    values, empty = _values(table[feature.name], spec, feature)
    newest_us = int(table[at].cast(pa.int64()).to_numpy().max())
    numbers: dict[str, Any] = {"distinct": int(np.unique(values).size)}
    if not _is_id(spec, feature):
        marks = np.quantile(values, [0, 0.5, 0.95, 1]).tolist() if values.size else [None] * 4
        numbers = dict(zip(("min", "p50", "p95", "max"), marks, strict=True))
    return {
        "rows": rows,
        "empty_share": float(empty.mean()),
        **numbers,
        "newest_at": datetime.fromtimestamp(newest_us / 1e6, UTC).isoformat(),
        "age_s": round(time.time() - newest_us / 1e6, 3),
    }


def online(settings: Settings, spec: LineSpec, given: dict[str, str]) -> dict[str, Any]:
    """What Feast's online store holds now for the given columns: value by feature, and row times.

    Only what follows from the given columns: windows whose whole key is given, request
    features of those. No value is None. Raises `DeclarationError` for a column that is not
    declared, `InputError` for a value that is not of its type.
    """
    from headrace.store import Store

    columns = {name: [_parsed(spec, name, text)] for name, text in given.items()}
    missing = {name: [None] for name in spec.columns if name not in columns}
    asked = pa.table(columns | missing | {"request_at": [time.time_ns() // 1_000]})
    row = Store(settings).read_online(spec, asked).to_pylist()[0]
    known = set(given)
    for feature in (*spec.windows, *spec.request_features):
        reads = feature.key if isinstance(feature, WindowFeature) else feature.inputs
        if known.issuperset(reads):
            known.add(feature.name)
    views = [view for view, some in spec.views.items() if known.issuperset(some[0].key)]
    times = {f"{view}__at" for view in views}
    return {
        name: None
        if value == MISSING or (isinstance(value, float) and math.isnan(value))
        else value
        for name, value in row.items()
        if name in known or name in times
    }


def newest_rows(settings: Settings, spec: LineSpec, view: str, count: int) -> pa.Table:
    """The newest rows of a view's offline parts, newest first. Raises `InputError` without any."""
    if view not in spec.views:
        raise InputError(f"{view} is made when it is asked and keeps no rows; read it with --key")
    found: list[pa.Table] = []
    for manifest in _newest_first(settings, spec):
        if view in manifest.features:
            path = settings.line_home(spec.line) / manifest.features[view]
            found.append(parts.read(path))
            if sum(part.num_rows for part in found) >= count:
                break
    if not found:
        raise InputError(f"{view} has no rows yet; start the stack and send events (`headrace up`)")
    return pa.concat_tables(found).sort_by([("event_timestamp", "descending")]).slice(0, count)


def _newest_first(settings: Settings, spec: LineSpec) -> Iterator[TickManifest]:
    home = settings.line_home(spec.line)
    return (read_tick(home, tick) for tick in reversed(range(head_tick(home))))


def _values(column: pa.ChunkedArray, spec: LineSpec, feature: Feature) -> tuple[Any, Any]:
    """Values that are there, and a mask of all rows: True where there is none."""
    values = column.to_numpy()
    if values.dtype == np.float64:
        empty = np.isnan(values)
    else:
        nothing = MISSING if feature.kind == "window" else -1
        empty = values == nothing
    return values[~empty], empty


def _is_id(spec: LineSpec, feature: Feature) -> bool:
    ids = {one.name for one in spec.request_features if one.produces == "id"}
    texts = {one.name for one in spec.windows if spec.window_kind(one) == "string"}
    return feature.name in ids | texts


def _parsed(spec: LineSpec, name: str, text: str) -> str | int | float:
    if name not in spec.columns:
        raise DeclarationError(
            f"{name!r} is not a column of line {spec.line!r}; {closest(name, spec.columns)}"
        )
    kind = spec.columns[name]
    try:
        return text if kind == "string" else int(text) if kind == "int" else float(text)
    except ValueError:
        raise InputError(f"{name}={text!r} is not {kind}, as line {spec.line!r} declares") from None
