"""The line that the server's benchmark serves: 18 windows on four keys, 30 inputs; its requests,
and the processes that answer them, alone on a core.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pyarrow as pa
import yaml

from bench._bare import LINE
from bench._load import post
from bench._measure import SEED
from bench._process import free_ports
from bench._redis import RedisServer
from headrace.declaration import LineSpec
from headrace.events import TIME
from headrace.line import LineStore
from headrace.model import Model
from headrace.serving import payload
from headrace.serving.scorer import wall_clock_us
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.stack.services import stack_environ
from headrace.store import Store
from headrace.store.latest import assemble
from headrace.train import code_of

CANDIDATES: Final = 50
SERVER_CORE: Final = {0}
USERS: Final = 4_000
ITEMS: Final = 2_000
KINDS: Final = 20
REQUESTS: Final = 200
START_S: Final = 600.0
KEYS: Final = {
    "user": ["user_id"],
    "item": ["item_id"],
    "kind": ["category"],
    "pair": ["user_id", "category"],
}
IDS: Final = {"user": "user_id", "item": "item_id", "sort": "category"}
WINDOWS: Final = {
    "user": ("1h", "1d", "7d"),
    "item": ("1h", "1d", "7d"),
    "kind": ("1h", "1d"),
    "pair": ("7d",),
}


def declared(bits: int) -> dict[str, Any]:
    """The line as its YAML."""
    windows: list[dict[str, Any]] = []
    inputs: list[dict[str, Any]] = []
    numeric = ["price"]
    for name, key in KEYS.items():
        for window in WINDOWS[name]:
            pair = [f"{name}_{event}s_{window}" for event in ("impression", "click")]
            for event, feature in zip(("impression", "click"), pair, strict=True):
                windows.append(
                    {"name": feature, "key": key, "event": event, "aggregate": "count",
                     "window": window}
                )  # fmt: skip
                inputs.append({"name": f"log_{feature}", "kind": "log1p", "of": feature})
        rate = f"{name}_ctr"
        inputs.append({"name": rate, "kind": "ratio", "of": pair[::-1], "prior": [1, 19]})
        numeric.append(rate)
    numeric += [each["name"] for each in inputs if each["kind"] == "log1p"]
    inputs.append({"name": "price", "kind": "number", "of": "amount"})
    inputs += [{"name": name, "kind": "hash", "of": column} for name, column in IDS.items()]
    inputs.append({"name": "user_sort", "kind": "cross", "of": ["user_id", "category"]})
    inputs.append({"name": "hour", "kind": "hour_of_day"})
    inputs.append({"name": "day", "kind": "day_of_week"})
    inputs.append({"name": "dear", "kind": "bucketize", "of": "amount", "boundaries": [1, 2, 5]})
    return {
        "line": LINE,
        "columns": {"user_id": "string", "item_id": "string", "category": "string",
                    "amount": "float"},
        "source": {"kind": "live"},
        "label": {"engagement": "click", "attribution_window": "1h", "provisional_after": "10s"},
        "windows": windows,
        "request_features": inputs,
        "model": {
            "family": "ftrl_deep", "table_bits": bits, "embedding_dim": 16, "hidden": [64, 32],
            "categorical": [*IDS, "user_sort", "hour", "day", "dear"], "numeric": numeric,
        },
    }  # fmt: skip


def prepare(home: Path, url: str, bits: int) -> Settings:
    """A home whose line has a champion and whose windows are in Redis."""
    lines = home / "lines"
    lines.mkdir(parents=True)
    text = yaml.safe_dump(declared(bits), sort_keys=False)
    (lines / f"{LINE}.yaml").write_text(text, encoding="utf-8")
    ports = [str(port) for port in free_ports(2)]
    settings = load_settings(
        {
            "HEADRACE_HOME": str(home / "home"),
            "HEADRACE_LINES_DIR": str(lines),
            "HEADRACE_ONLINE_STORE": url,
            "HEADRACE_SERVER_PORT": ports[0],
            "HEADRACE_GRPC_PORT": ports[1],
        }
    )
    spec = find_line(settings, LINE)
    push_all(settings, spec)
    lines_of = LineStore(settings.line_store_url(LINE), LINE)
    version = lines_of.publish(Model(spec.model, spec.seed).state(), parent=None, **about(spec))
    lines_of.advance(None, version.version, "promote", "bench")
    return settings


def push_all(settings: Settings, spec: LineSpec) -> None:
    """Write the windows of every key to the online store, as `headrace ingest` does."""
    store = Store(settings)
    store.apply()
    rng = np.random.default_rng(SEED)
    for view in spec.views:
        store.clear(view)
        store.push(spec, view, windows_of(spec, view, rng, 1_750_000_000_000_000, range(USERS)))


def windows_of(
    spec: LineSpec, view: str, rng: np.random.Generator, at_us: int, users: Sequence[int]
) -> pa.Table:
    """Rows of a view at a time: of all its keys, with these users alone."""
    features = spec.views[view]
    columns = _keys(features[0].key, users)
    size = len(next(iter(columns.values())))
    columns["event_timestamp"] = pa.array(np.full(size, at_us)).cast(TIME)
    for feature in features:
        columns[feature.name] = pa.array(rng.zipf(1.5, size) % 10_000)
    return pa.table(columns)


def _keys(key: tuple[str, ...], users: Sequence[int]) -> dict[str, pa.Array]:
    values = {"user_id": _names("u", users), "item_id": _names("c", range(ITEMS))}
    values["category"] = _names("x", range(KINDS))
    if len(key) == 1:
        return {key[0]: pa.array(values[key[0]])}
    pairs = [(user, kind) for user in values["user_id"] for kind in values["category"]]
    return {name: pa.array(each) for name, each in zip(key, zip(*pairs, strict=True), strict=True)}


def _names(letter: str, numbers: Sequence[int]) -> list[str]:
    return [f"{letter}{number}" for number in numbers]


def about(spec: LineSpec) -> Any:
    return {
        "from_tick": 0, "to_tick": 1, "excluded": [], "watermark_us": time.time_ns() // 1_000,
        "event_at_us": 0, "feature_service": spec.feature_service, "code": code_of(spec),
        "rows": 0, "metrics": {"label_rate": 0.1},
    }  # fmt: skip


@contextlib.contextmanager
def beside_the_server() -> Iterator[None]:
    """This process, and what it starts but servers, on the other cores than the server's."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, mine - SERVER_CORE or mine)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    """URL of an empty Redis."""
    own = RedisServer(folder, "bench")
    own.start()
    try:
        yield own.url
    finally:
        own.stop()


@contextlib.contextmanager
def server(settings: Settings) -> Iterator[tuple[int, int]]:
    """Port and process of `headrace serve`, once it is ready."""
    start = "from headrace.cli import main; main()"
    command = [sys.executable, "-c", start, "serve", "--line", LINE]
    ready_at = f"{settings.server_url}/v2/health/ready"
    with process(settings, command, lambda: httpx.get(ready_at, trust_env=False)) as pid:
        told = f"{settings.server_url}/v2/models/{LINE}"
        # the second model is still being loaded, which is no request's cost
        while not httpx.get(told, trust_env=False, timeout=START_S).json()["delivery"]["waiting"]:
            time.sleep(0.1)
        yield settings.server_port, pid


@contextlib.contextmanager
def bare_server(settings: Settings) -> Iterator[int]:
    """Port of the bare server."""
    (port,) = free_ports(1)
    docs = f"http://127.0.0.1:{port}/openapi.json"
    command = [sys.executable, "-m", "bench._bare", str(port)]
    with process(settings, command, lambda: httpx.get(docs, trust_env=False)):
        yield port


@contextlib.contextmanager
def process(
    settings: Settings, command: list[str], ask: Callable[[], httpx.Response]
) -> Iterator[int]:
    """A process on the server's core, until it answered and the block is over."""
    with tempfile.TemporaryFile("w+") as log:
        started = subprocess.Popen(
            command,
            cwd=PROJECT,
            env=stack_environ(settings, "bench"),
            stdout=log,
            stderr=log,
        )
        try:
            for thread in Path(f"/proc/{started.pid}/task").iterdir():  # others inherit it
                os.sched_setaffinity(int(thread.name), SERVER_CORE)
            until = time.monotonic() + START_S
            while not _answers(ask):
                if started.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise RuntimeError(f"{command} did not start: {log.read()[-2000:]}")
                time.sleep(0.1)
            yield started.pid
        finally:
            started.terminate()
            started.wait(60)


def _answers(ask: Callable[[], httpx.Response]) -> bool:
    try:
        return ask().is_success
    except httpx.TransportError:
        return False


def asked(spec: LineSpec, candidates: int) -> list[bytes]:
    """A request of each user, for different items: who comes again finds that others came since."""
    rng = np.random.default_rng(SEED)
    return [
        post("/v1/score", json.dumps(body(rng, user, candidates)).encode()) for user in range(USERS)
    ]


def body(rng: np.random.Generator, user: int, candidates: int) -> dict[str, Any]:
    """What one of them asks."""
    items = rng.choice(ITEMS, candidates, replace=False).tolist()
    return {
        "context": {"user_id": f"u{user}"},
        "candidates": [
            {"item_id": f"c{item}", "category": f"x{item % KINDS}", "amount": item % 70 / 10}
            for item in items
        ],
    }


def ready(settings: Settings, spec: LineSpec) -> list[bytes]:
    """The first of these requests as vectors, for a server that looks nothing up."""
    store, rng, found = Store(settings), np.random.default_rng(SEED), []
    for user in range(REQUESTS):
        rows = rows_of(store, spec, body(rng, user, CANDIDATES))
        ids, numbers = (
            rows.select(list(names)).to_pydict()
            for names in (spec.model.categorical, spec.model.numeric)
        )
        vectors = {
            "ids": list(zip(*ids.values(), strict=True)),
            "numbers": list(zip(*numbers.values(), strict=True)),
        }
        found.append(post("/predict", json.dumps(vectors).encode()))
    return found


def rows_of(store: Store, spec: LineSpec, asked_for: dict[str, Any]) -> pa.Table:
    """What the server reads and computes for the body of a request."""
    parsed = payload.score_request(spec).model_validate_json(json.dumps(asked_for))
    asked = payload.candidates_of(spec, parsed).at(wall_clock_us())
    return assemble(spec, asked, store.look_up(spec, asked))
