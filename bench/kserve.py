"""The scoring server beside one made with KServe's SDK, each alone on a core, in turns.

KServe pins libraries that Airflow pins otherwise, so it has an environment of its own
(`infra/setup/kserve.sh`). Its server listens on every address, whatever it is told: all of this
runs in a network namespace without a way out.

- *features*: the KServe server is asked for the same candidates and reads the same features
  through Feast's SDK from the same Redis; the claim is made on this one, as it does the same work
  but for log, following and metrics.
- *vectors*: it is given ready vectors, and looks nothing up.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from bench._bare import LINE
from bench._load import Answers, Connection, flat_out, post
from bench._measure import SEED, at_least, equality, not_measured
from bench._process import free_ports
from bench._redis import REMEDY, installed
from bench._serving import (
    CANDIDATES,
    REQUESTS,
    asked,
    beside_the_server,
    body,
    prepare,
    process,
    redis,
    rows_of,
    server,
)
from headrace.declaration import LineSpec
from headrace.settings import PROJECT, Settings, find_line
from headrace.store import Store

PYTHON: Final = PROJECT / "out" / "kserve" / "bin" / "python"
CONNECTIONS: Final = 4
ALONE: Final = ("unshare", "--user", "--map-root-user", "--net", "--")
TITLE: Final = "throughput over KServe's model server with Feast's SDK"
CLOSE: Final = 1e-6


def run(*, quick: bool = False) -> dict[str, Any]:
    """Measure, in about two minutes; quick in one."""
    if (why := _absent()) is not None:
        claims = [not_measured(TITLE, *why)]
        return {"what": "the server beside KServe's", "claims": claims, "table": {}}
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "found.json"
        inner = [sys.executable, "-m", "bench.kserve", str(out), *(["--quick"] if quick else [])]
        command = [*ALONE, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *inner]
        subprocess.run(command, cwd=PROJECT, check=True)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _absent() -> tuple[str, str] | None:
    """What is missing and how to get it, None when all is there."""
    if not installed():
        return "redis-server", REMEDY
    if not PYTHON.exists():
        return "kserve", "run `bash infra/setup/kserve.sh`"
    if shutil.which("ip") is None:
        return "ip", "apt-get install iproute2"
    if subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode:
        return "a network namespace", "allow user namespaces, or run as root"
    return None


def _measure(folder: Path, url: str, spell_s: float, turns: int, bits: int) -> dict[str, Any]:
    settings = prepare(folder, url, bits)
    spec = find_line(settings, LINE)
    ours, theirs = asked(spec, CANDIDATES), _instances(settings, spec)
    (port_of_theirs,) = free_ports(1)
    address = f"http://127.0.0.1:{port_of_theirs}/v2/health/ready"
    command = [str(PYTHON), "-m", "bench._kserve", str(port_of_theirs)]
    with (
        server(settings) as (port, _),
        process(settings, command, lambda: httpx.get(address, trust_env=False)),
    ):
        ways = {"headrace": (port, cycle(ours))}
        ways |= {f"kserve, {name}": (port_of_theirs, cycle(load)) for name, load in theirs.items()}
        same = _same(
            port, ours[0], port_of_theirs, {name: each[0] for name, each in theirs.items()}
        )
        for to, load in ways.values():
            _good(flat_out(to, load, CONNECTIONS, spell_s / 2))
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, (to, load) in ways.items():
                found[name].append(_good(flat_out(to, load, CONNECTIONS, spell_s)).rate)
    return _told(found, same)


def _instances(settings: Settings, spec: LineSpec) -> dict[str, list[bytes]]:
    """The first of `asked` as KServe's first protocol words them: candidates, and vectors."""
    rng = np.random.default_rng(SEED)
    bodies = [body(rng, user, CANDIDATES) for user in range(REQUESTS)]
    rows = [[each["context"] | row for row in each["candidates"]] for each in bodies]
    names = [*spec.model.categorical, *spec.model.numeric]
    store = Store(settings)
    vectors = [rows_of(store, spec, each).select(names).to_pylist() for each in bodies]
    return {"features": _posts("features", rows), "vectors": _posts("vectors", vectors)}


def _posts(model: str, requests: list[Any]) -> list[bytes]:
    path = f"/v1/models/{model}:predict"
    return [post(path, json.dumps({"instances": rows}).encode()) for rows in requests]


def _same(port: int, ours: bytes, port_of_theirs: int, theirs: dict[str, bytes]) -> bool:
    """Whether all answer one request with the same scores, but for what a clock feature moves."""
    scores = [each["score"] for each in _ask(port, ours)["scores"]]
    answers = [_ask(port_of_theirs, each)["predictions"] for each in theirs.values()]
    return all(bool(np.allclose(scores, each, atol=CLOSE)) for each in answers)


def _ask(port: int, request: bytes) -> Any:
    connection = Connection(port)
    status, answer = connection.ask(request)
    connection.close()
    if status != 200:
        raise RuntimeError(f"port {port} answered {status}: {answer[:500]!r}")
    return json.loads(answer)


def _good(answers: Answers) -> Answers:
    if answers.failed:
        raise RuntimeError(f"{answers.failed} of {len(answers.ms)} requests failed")
    return answers


def _told(found: dict[str, list[float]], same: bool) -> dict[str, Any]:
    ratio = {
        name: statistics.median(a / b for a, b in zip(found["headrace"], rates, strict=True))
        for name, rates in found.items()
    }
    return {
        "what": "the scoring server and one made with KServe's SDK, each alone on a core",
        "candidates": CANDIDATES,
        "throughput": found,
        "claims": [
            at_least(TITLE, ratio["kserve, features"], "x", 2),
            equality("the servers give the same scores", same),
        ],
        "table": {
            "heads": ["server", "most requests a second", "headrace over it"],
            "rows": [
                [name, f"{statistics.median(rates):.1f}", f"{ratio[name]:.2f}"]
                for name, rates in found.items()
            ],
        },
    }


def main() -> None:
    """Inside the namespace: `python -m bench.kserve OUT [--quick]`."""
    out, quick = Path(sys.argv[1]), "--quick" in sys.argv
    with (
        beside_the_server(),
        tempfile.TemporaryDirectory() as name,
        redis(Path(name)) as url,
    ):
        found = _measure(Path(name), url, *((1.0, 1, 12) if quick else (8.0, 5, 20)))
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
