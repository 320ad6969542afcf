"""An exported version against the server's own model: latency, sizes, what quantisation loses.

A line with 26 text ids, 8 crosses, 13 numbers and their buckets learns the click stream of
`_clicks`. Each form of its export is loaded from its folder and scores the later rows; calls of
the server's path (`transform`, then `Model.predict`) and of the SavedModels are interleaved, and
a figure is the median of CPU over calls (threads of this process together), wall time beside it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench import _clicks
from bench._measure import SEED, at_least, at_most, equality
from headrace import metrics
from headrace.declaration import LineSpec
from headrace.export import proof, signature
from headrace.export.graph import Scorer
from headrace.export.save import write
from headrace.export.weights import Quantize, quantized, size_of, weights
from headrace.model import Model
from headrace.model.delta import State
from headrace.model.runtime import tf
from headrace.requests import transform

FORMS: Final[tuple[Quantize | None, ...]] = (None, "float16", "int8")
BATCHES: Final = (1, 32, 512)
THREADS: Final = 8
_PIECE: Final = 20_000
_AT_US: Final = 1_767_225_600_000_000


def run(*, quick: bool = False) -> dict[str, Any]:
    """Learn, export in each form, compare scores, sizes and latency."""
    rows, later, bits, calls = (3_000, 1_000, 10, 3) if quick else (1_000_000, 100_000, 21, 60)
    spec = _line(bits)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _clicks.write(folder, rows, later)
        data = _clicks.read(folder)
        model = Model(spec.model, SEED)
        for start in range(0, rows, _PIECE):
            model.learn(_samples(spec, data, slice(start, min(start + _PIECE, rows))))
        state = model.state()
        served = {str(form or "float32"): _save(spec, state, form, folder) for form in FORMS}
        labels = np.asarray(data["labels"][rows:])
        asked = [
            _raw(data, slice(start, min(start + _PIECE, rows + later)))
            for start in range(rows, rows + later, _PIECE)
        ]
        scores = {"server": _clicks_of(proof.server_scores(model, spec, part) for part in asked)}
        for form, found in served.items():
            scores[form] = _clicks_of(proof.scores(found["serve"], spec, part) for part in asked)
        quality = {
            form: {"logloss": metrics.log_loss(labels, each), "auc": metrics.auc(labels, each)}
            for form, each in scores.items()
        }
        latency = {
            batch: _latency(spec, model, served, asked[0].slice(0, batch), calls)
            for batch in BATCHES
        }
        alike = _threads_agree(spec, served["float32"]["serve"], asked[0].slice(0, 300))
    apart = float(np.abs(scores["float32"] - scores["server"]).max())
    forms = {
        form: {key: value for key, value in found.items() if key != "serve"} | quality[form]
        for form, found in served.items()
    }
    return {
        "what": "A version exported: sizes, quality and latency",
        "rows": rows,
        "later": later,
        "server": quality["server"] | {"bytes": size_of(state)},
        "forms": forms,
        "largest_difference": apart,
        "latency": latency,
        "table": _table(quality["server"] | {"bytes": size_of(state)}, forms, latency),
        "claims": _claims(quality, forms, latency, apart=apart, alike=alike),
    }


def _line(bits: int) -> LineSpec:
    ids = [f"id{i}" for i in range(_clicks.FIELDS)]
    numbers = [f"number{i}" for i in range(_clicks.NUMBERS)]
    edges = np.linspace(-2, 2, 15).tolist()
    features: list[dict[str, Any]] = [
        {"name": f"{name}_id", "kind": "hash", "of": name} for name in ids
    ]
    features += [
        {"name": f"cross{i}", "kind": "cross", "of": [f"id{left}", f"id{right}"]}
        for i, (left, right) in enumerate(_clicks.CROSSES)
    ]
    features += [{"name": f"{name}_is", "kind": "number", "of": name} for name in numbers]
    features += [
        {"name": f"{name}_bucket", "kind": "bucketize", "of": name, "boundaries": edges}
        for name in numbers
    ]
    names = [feature["name"] for feature in features]
    wide = [name for name in names if name.startswith("cross") or name.endswith("_bucket")]
    return LineSpec.model_validate(
        {
            "line": "exported",
            "seed": SEED,
            "columns": dict.fromkeys(ids, "string") | dict.fromkeys(numbers, "float"),
            "source": {"kind": "live"},
            "label": {"engagement": "click", "attribution_window": "1h", "provisional_after": "1s"},
            "request_features": features,
            "model": {
                "family": "ftrl_deep",
                "categorical": [name for name in names if not name.endswith("_is")],
                "numeric": [name for name in names if name.endswith("_is")],
                "wide": wide,
                "table_bits": bits,
                "embedding_dim": 16,
                "batch_size": 512,
                "ftrl_alpha": 0.1,
                "ftrl_l2": 0.0,
                "embedding_learning_rate": 0.02,
                "dense_learning_rate": 0.001,
            },
        }
    )


def _raw(data: dict[str, NDArray[Any]], part: slice) -> pa.Table:
    """Those rows as a request brings them: texts, numbers, the time."""
    columns = {
        f"id{i}": pa.array(np.ascontiguousarray(column)).cast(pa.string())
        for i, column in enumerate(data["ids"][part].T)
    }
    columns |= {
        f"number{i}": pa.array(np.ascontiguousarray(column))
        for i, column in enumerate(data["numbers"][part].T)
    }
    return pa.table(columns | {"request_at": np.full(part.stop - part.start, _AT_US)})


def _samples(spec: LineSpec, data: dict[str, NDArray[Any]], part: slice) -> pa.Table:
    label = np.asarray(data["labels"][part])
    weighed = {"positive_weight": label, "negative_weight": 1 - label}
    inputs = transform(spec, _raw(data, part))
    for name, weight in weighed.items():
        inputs = inputs.append_column(name, pa.array(weight))
    return inputs


def _save(spec: LineSpec, state: State, form: Quantize | None, folder: Path) -> dict[str, Any]:
    """Bytes of the arrays and of the folder, seconds to save and to load, and the signature."""
    to = folder / (form or "float32")
    arrays = quantized(weights(spec.model, state), form)
    started = time.perf_counter()
    write(Scorer(spec, arrays), to, {})
    saved = time.perf_counter()
    loaded = tf.saved_model.load(str(to))
    return {
        "bytes": size_of(arrays),
        "disk": sum(file.stat().st_size for file in to.rglob("*") if file.is_file()),
        "save_s": saved - started,
        "load_s": time.perf_counter() - saved,
        "serve": _Held(loaded),
    }


class _Held:
    """A loaded SavedModel and its signature, which alone would let its variables go."""

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded
        self._serve = loaded.signatures[signature.NAME]

    def __call__(self, **inputs: Any) -> Any:
        return self._serve(**inputs)


def _latency(
    spec: LineSpec, model: Model, served: dict[str, dict[str, Any]], table: pa.Table, calls: int
) -> dict[str, dict[str, float]]:
    """Median CPU and wall ms of a call, by who answers."""
    inputs = transform(spec, table)
    fed = {name: tf.constant(values) for name, values in signature.feed(spec, table).items()}
    who: dict[str, Callable[[], Any]] = {
        "server, features and model": lambda: model.predict(transform(spec, table)),
        "server, model alone": lambda: model.predict(inputs),
    }
    for form, found in served.items():
        who[form] = partial(_call, found["serve"], fed)
    cpu: dict[str, list[float]] = {name: [] for name in who}
    wall: dict[str, list[float]] = {name: [] for name in who}
    for call in who.values():
        call()
    for _ in range(calls):
        for name, call in who.items():
            ticked, started = time.process_time(), time.perf_counter()
            call()
            wall[name].append(1e3 * (time.perf_counter() - started))
            cpu[name].append(1e3 * (time.process_time() - ticked))
    return {
        name: {"cpu_ms": statistics.median(cpu[name]), "wall_ms": statistics.median(wall[name])}
        for name in who
    }


def _call(serve: proof.Serve, fed: dict[str, Any]) -> Any:
    return serve(**fed)["probability"].numpy()


def _threads_agree(spec: LineSpec, serve: Any, table: pa.Table) -> bool:
    """Whether calls of other sizes at the same time give what one call after the other gives."""
    parts = [table.slice(start, size) for size in (1, 7, 256, 300) for start in (0, 40)]
    expected = [proof.scores(serve, spec, part) for part in parts]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda part: proof.scores(serve, spec, part), parts * 4))
    return all(np.array_equal(one, other) for one, other in zip(found, expected * 4, strict=True))


def _clicks_of(parts: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([part[:, 0] for part in parts])


def _table(
    server: dict[str, Any],
    forms: dict[str, dict[str, Any]],
    latency: dict[int, dict[str, dict[str, float]]],
) -> dict[str, Any]:
    def calls(who: str) -> list[str]:
        return [f"{latency[batch][who]['cpu_ms']:.2f}" for batch in BATCHES]

    heads = ["", "MB", "log loss", "AUC", "load, s"]
    heads += [f"CPU ms, {batch} rows" for batch in BATCHES]
    rows = []
    for who, found in {"server, features and model": server, **forms}.items():
        figures = (f"{found['bytes'] / 1e6:.1f}", f"{found['logloss']:.5f}", f"{found['auc']:.5f}")
        loaded = f"{found['load_s']:.2f}" if "load_s" in found else ""
        rows.append([who, *figures, loaded, *calls(who)])
    return {"heads": heads, "rows": rows}


def _claims(
    quality: dict[str, dict[str, float]],
    forms: dict[str, dict[str, Any]],
    latency: dict[int, dict[str, dict[str, float]]],
    *,
    apart: float,
    alike: bool,
) -> list[dict[str, Any]]:
    server = "server, features and model"
    claims = [
        equality("an export gives the server's scores, to 1e-15", apart <= 1e-15),
        equality(f"{THREADS} threads with calls of other sizes get the same scores", alike),
    ]
    for form, most in (("float16", -0.0001), ("int8", -0.001)):
        lost = quality[form]["auc"] - quality["server"]["auc"]
        claims.append(at_least(f"AUC of {form} tables over the server's", lost, "AUC", most))
    for form, most in (("float16", 0.55), ("int8", 0.4)):
        share = forms[form]["bytes"] / forms["float32"]["bytes"]
        claims.append(at_most(f"bytes of {form} tables over float32", share, "x", most))
    for batch in BATCHES:
        ratio = latency[batch]["float32"]["cpu_ms"] / latency[batch][server]["cpu_ms"]
        claims.append(
            at_most(f"CPU of a call with {batch} rows over the server's", ratio, "x", 1.0)
        )
    return claims
