"""A real S3 API on loopback for tests: moto's server as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
# the body of an answer goes out after its head at once, not 40 ms later with the client's ACK
SERVE = """
from werkzeug.serving import WSGIRequestHandler
WSGIRequestHandler.disable_nagle_algorithm = True
from moto.server import main
main()
"""


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a server that runs as long as the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@contextmanager
def s3_bucket(server: str, name: str) -> Iterator[str]:
    """The URL of a new bucket; the environment points at its server while the block runs."""
    given = CREDENTIALS | {"AWS_ENDPOINT_URL": server}
    before = {key: os.environ.get(key) for key in given}
    os.environ.update(given)
    forget_clients()
    try:
        fsspec.filesystem("s3").mkdir(name)
        yield f"s3://{name}"
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        forget_clients()


def forget_clients() -> None:
    """Make the next client read the environment; fsspec keeps one for equal arguments."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _wait(port: int, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"moto_server did not listen on port {port}")
