"""A local server that speaks as much of the Docker Engine API as running a pipeline needs.

A container is a process of this machine with the container's command and environment alone. It
proves the client and what a container is given, not an engine.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback import Answering, serving_on

VERSION = "1.45"


@dataclass
class Engine:
    """What the engine has and was asked for."""

    url: str = ""
    images: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)  # bodies, in order
    codes: list[int] = field(default_factory=list)
    pulled: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)  # ids that a list of containers tells
    stopped: list[str] = field(default_factory=list)
    forgetful: bool = False  # a container is gone before anybody asks how it ended

    def run(self, number: int) -> bytes:
        """Run a container's command to its end; returns its output, framed as an engine does."""
        body = self.created[number]
        environment = dict(one.split("=", 1) for one in body["Env"])
        environment["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        done = subprocess.run(
            body["Cmd"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
        self.codes.append(done.returncode)
        lines = done.stdout.splitlines(keepends=True)
        return b"".join(struct.pack(">BxxxL", 1, len(line)) + line for line in lines)

    def die_events(self) -> bytes:
        """One JSON object a line, as `/events` streams them."""
        return b"".join(
            json.dumps(
                {"Action": "die", "Actor": {"Attributes": {"exitCode": str(c), "name": f"c{n}"}}}
            ).encode()
            + b"\n"
            for n, c in enumerate(self.codes)
        )


def handler(engine: Engine) -> type[BaseHTTPRequestHandler]:
    class Handler(Answering):
        def _do(self) -> None:
            url = urlsplit(self.path)
            raw = self._body()
            path, query = unquote(url.path).removeprefix(f"/v{VERSION}"), parse_qs(url.query)
            parts = path.strip("/").split("/")
            if path in ("/version", "/_ping", "/info"):
                self._json(200, {"ApiVersion": VERSION, "MinAPIVersion": "1.24"})
            elif path == "/images/json":
                self._json(200, [{"Id": name, "RepoTags": [name]} for name in engine.images])
            elif path == "/images/create":
                engine.pulled.append(query["fromImage"][0])
                self._json(404, {"message": "pull access denied"})
            elif parts[0] == "images":
                name = path.removeprefix("/images/").removesuffix("/json")
                found = name in engine.images
                body = {"Id": name, "RepoTags": [name], "RepoDigests": []}
                self._json(200 if found else 404, body if found else {"message": "No such image"})
            elif path == "/containers/create":
                engine.created.append(json.loads(raw))
                self._json(201, {"Id": f"c{len(engine.created) - 1}", "Warnings": []})
            elif path == "/containers/json":
                self._json(200, [{"Id": name} for name in engine.running])
            elif path == "/events":
                self._send(200, engine.die_events(), "application/json")
            else:
                self._container(parts[1], parts[-1])

        def _container(self, name: str, what: str) -> None:
            if what == "logs":
                self._send(200, engine.run(int(name[1:])), "application/octet-stream")
            elif what == "wait":
                code = engine.codes[int(name[1:])]
                gone = {"message": "No such container"}
                self._json(404 if engine.forgetful else 200, gone if engine.forgetful else
                           {"StatusCode": code})  # fmt: skip
            elif what == "json":
                self._json(200, {"Id": name, "Config": {"Tty": False}, "State": {}})
            else:  # start, stop
                if what == "stop":
                    engine.stopped.append(name)
                self._send(204, b"", "text/plain")

        do_GET = do_POST = _do

    return Handler


@contextmanager
def serving() -> Iterator[Engine]:
    """An engine on a free port of the loopback, as long as the block runs."""
    made = Engine()
    with serving_on(handler(made)) as address:
        made.url = f"tcp://{address}"
        yield made
