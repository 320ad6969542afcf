"""A version as a SavedModel: a folder that is complete or absent, with its story inside."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from headrace.atomic import sync_folder, write_json
from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.evaluate import first_seen
from headrace.export import proof, signature
from headrace.export.graph import Scorer
from headrace.export.probe import rows as probe_rows
from headrace.export.weights import Quantize, quantized, size_of, weights
from headrace.labels.revisions import unsettled
from headrace.line import LineStore, Version
from headrace.model import Model, State
from headrace.model.runtime import tf
from headrace.sample import head_tick, read_samples
from headrace.settings import Settings
from headrace.train import code_of, quarantined, require_same_code

ABOUT: Final = "assets.extra/headrace.json"
PROBES: Final = 512
NEWEST: Final = 20_000
"""Samples that an export is checked on, and a smaller one compared."""


@dataclass(frozen=True)
class Exported:
    """What was written. Bytes: of the trainer's `state`, of the `float32` arrays that serve, of the
    `exported` ones, and of the folder on `disk`. `largest_difference`: of a probability, before
    quantisation, on `rows_checked` rows. `figures`: on the newest samples, None without any.
    """

    line: str
    version: str
    path: str
    quantize: Quantize | None
    bytes: dict[str, int]
    rows_checked: int
    largest_difference: float
    figures: proof.Figures | None


def export(
    settings: Settings,
    spec: LineSpec,
    to: Path,
    version: str | None = None,
    quantize: Quantize | None = None,
) -> Exported:
    """Write a version (default: the champion) to the new folder `to`.

    Before anything is written the graph must score as the server's model, on drawn rows and on
    the newest samples. Raises `InputError` for an unknown version, a folder that is in use or a
    quantisation that does not fit, `DeclarationError` for a feature that cannot be exported or a
    version of another declaration, `IntegrityError` when the scores differ.
    """
    _require_free(to)
    found, state = _load(settings, spec, version)
    arrays = weights(spec.model, state, conversion=spec.converts)
    small = quantized(arrays, quantize)
    model = Model(spec.model, spec.seed, conversion=spec.converts, blank=True)
    model.load_state(state)
    graph = Scorer(spec, arrays)
    drawn, samples = probe_rows(spec, PROBES, spec.seed), newest_samples(settings, spec)
    apart = max(proof.check(graph.serve, model, spec, rows) for rows in (drawn, samples))
    if quantize is not None:
        graph = Scorer(spec, small)
    figures = proof.compare(graph.serve, model, spec, samples) if samples.num_rows else None
    sizes = {"state": size_of(state), "float32": size_of(arrays), "exported": size_of(small)}
    write(graph, to, about(spec, found, quantize))
    return Exported(
        line=spec.line,
        version=found.version,
        path=str(to),
        quantize=quantize,
        bytes=sizes | {"disk": sum(f.stat().st_size for f in to.rglob("*") if f.is_file())},
        rows_checked=drawn.num_rows + samples.num_rows,
        largest_difference=apart,
        figures=figures,
    )


def newest_samples(settings: Settings, spec: LineSpec) -> pa.Table:
    """Up to `NEWEST` samples with a settled label, as raw rows: columns, windows, `request_at`."""
    home = settings.line_home(spec.line)
    start = head = head_tick(home)
    step = 1
    while True:
        exclude = quarantined(settings, spec, start, head)
        samples = read_samples(spec, home, start, head, exclude=exclude)
        if samples.num_rows >= NEWEST or start == 0:
            break
        start, step = max(start - step, 0), 2 * step
    settled = first_seen(samples.filter(pa.array(~unsettled(spec, samples))))
    newest = settled.slice(max(settled.num_rows - NEWEST, 0))
    return newest.append_column("request_at", newest["served_at"].cast(pa.int64()))


def about(spec: LineSpec, version: Version, quantize: Quantize | None) -> dict[str, Any]:
    """What a server of the folder may want to know (JSON): whence it came, what it takes."""
    watermark = datetime.fromtimestamp(version.watermark_us / 1e6, UTC)
    missing = signature.ABSENT | {"float": "NaN"}  # JSON has no NaN
    return {
        "line": spec.line,
        "version": version.version,
        "feature_service": version.feature_service,
        "watermark": watermark.isoformat(timespec="milliseconds"),
        "watermark_us": version.watermark_us,
        "created_at": version.created_at,
        "code": code_of(spec),
        "fingerprint": version.fingerprint,
        "quantize": quantize,
        "headrace": package_version("headrace"),
        "tensorflow": tf.__version__,
        "signature": signature.NAME,
        "inputs": {
            name: {
                "dtype": tensor.dtype.name,
                "shape": [None],
                "missing": missing[spec.columns.get(name, "int")],
            }
            for name, tensor in signature.specs(spec).items()
        },
        "outputs": {
            name: {"dtype": dtype, "shape": [None]}
            for name, dtype in signature.outputs(spec).items()
        },
    }


def write(graph: Scorer, to: Path, story: dict[str, Any]) -> None:
    """Save the graph in a folder beside `to` that then takes its name, so that a watching server
    finds it whole.
    """
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        tf.saved_model.save(graph, str(partial), signatures={signature.NAME: graph.serve})
        (partial / ABOUT).parent.mkdir(parents=True)
        write_json(partial / ABOUT, story)
        partial.replace(to)
        sync_folder(to.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load(settings: Settings, spec: LineSpec, version: str | None) -> tuple[Version, State]:
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    if version is None:
        champion = store.champion()
        if champion is None:
            raise InputError(
                f"line {spec.line!r} has no champion to export; train it first (`headrace up "
                "--simulate`, or the full_train pipeline), or name a version"
            )
        version = champion.version
    found, state = store.load(version)
    require_same_code(spec, found)
    return found, state


def _require_free(to: Path) -> None:
    if to.is_dir() and not any(to.iterdir()):
        return
    if to.exists() or to.is_symlink():
        raise InputError(
            f"--to {to} exists; name a new folder (a server that follows {to.parent} expects a "
            "number that is one higher)"
        )
