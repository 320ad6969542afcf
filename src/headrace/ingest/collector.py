"""The collector: events over HTTP, durable before they are acknowledged.

A malformed event is refused with its reason and kept in `malformed.jsonl`; it never enters
the log. Events of all requests that come within 100 ms share one append (group commit).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import socket
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import event_schema
from headrace.ingest.intake import Intake, Refused
from headrace.log.stamp import EventWriter, clock_us
from headrace.sample import head_tick, read_tick
from headrace.settings import Settings

LOG = logging.getLogger(__name__)
COMMIT_S: Final = 0.1
_MAX_BODY: Final = 16 * 2**20

Row = dict[str, Any]


class SideLog:
    """`malformed.jsonl`: one refused event a line, durable when `add` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._guard = threading.Lock()
        self._file = path.open("a+b")
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":  # the line that a kill cut short
                self._file.write(b"\n")
        self._file.seek(0)
        self.count = sum(1 for line in self._file if line.strip())

    def add(self, refused: list[Refused], received_at: int) -> None:
        """Keep refused events with their reasons; `received_at` in us."""
        lines = [
            json.dumps({"received_at": received_at, "reason": why, "raw": raw})
            for why, raw in refused
        ]
        with self._guard:
            self._file.write("".join(line + "\n" for line in lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self.count += len(lines)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._file.seek(0, os.SEEK_END)

    def rewind(self, size: int) -> None:
        """Take back what was added behind the first `size` bytes."""
        with self._guard:
            self._file.truncate(size)
            os.fsync(self._file.fileno())
            self._file.seek(0)
            self.count = sum(1 for line in self._file if line.strip())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Committer:
    """One thread that appends what has gathered, at most every 100 ms."""

    def __init__(self, writer: EventWriter, schema: pa.Schema) -> None:
        self._writer = writer
        self._schema = schema
        self._waiting: queue.SimpleQueue[tuple[list[Row], Future[int]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)

    def start(self) -> None:
        """Begin to commit."""
        self._thread.start()

    def put(self, rows: list[Row]) -> Future[int]:
        """The first offset of an append with these rows, once it is durable."""
        done: Future[int] = Future()
        self._waiting.put((rows, done))
        return done

    def stop(self) -> None:
        """Commit everything accepted, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            batch = [self._waiting.get()]
            if batch[0] is not None:
                time.sleep(COMMIT_S)
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            open_ = None not in batch
            self._commit([item for item in batch if item is not None])

    def _commit(self, batch: list[tuple[list[Row], Future[int]]]) -> None:
        if not batch:
            return
        for _, done in batch:
            done.set_running_or_notify_cancel()  # a sender that left cannot cancel it any more
        rows = [row for part, _ in batch for row in part]
        try:
            first = self._writer.append(pa.Table.from_pylist(rows, schema=self._schema))
        except Exception as problem:  # noqa: BLE001 (whatever it is, every sender must hear of it)
            LOG.error("event log: append failed: %s", problem)
            for _, done in batch:
                if not done.cancelled():
                    done.set_exception(problem)
        else:
            for part, done in batch:
                if not done.cancelled():
                    done.set_result(first)
                first += len(part)


class Collector:
    """The HTTP server of the collector, in threads of its own."""

    def __init__(
        self, settings: Settings, spec: LineSpec, writer: EventWriter, malformed: Path
    ) -> None:
        self._listener = _listen(settings.host, settings.collector_port)
        self._side = SideLog(malformed)
        self._committer = Committer(writer, event_schema(spec))
        app = create_app(spec, settings.line_home(spec.line), writer, self._committer, self._side)
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener],), name="collector", daemon=True
        )

    def start(self) -> None:
        """Begin to answer; returns when the server does."""
        self._committer.start()
        self._thread.start()
        while not self._server.started:
            self.check()
            time.sleep(0.01)

    def check(self) -> None:
        """Raise `EnvironmentFault` when the server has died."""
        if not self._thread.is_alive():
            raise EnvironmentFault("the collector's HTTP server ended unexpectedly; see its log")

    def stop(self) -> None:
        """Answer what came in, store it, and end."""
        self._server.should_exit = True
        self._thread.join()
        self._committer.stop()
        self._listener.close()
        self._side.close()


def create_app(
    spec: LineSpec, home: Path, writer: EventWriter, committer: Committer, side: SideLog
) -> FastAPI:
    """The collector's routes: `POST /v1/events`, `GET /v1/status`, `GET /health`."""
    app = FastAPI(title=f"Headrace collector: {spec.line}", docs_url=None, redoc_url=None)
    intake = Intake(spec)

    @app.post("/v1/events")
    async def events(request: Request) -> JSONResponse:
        if int(request.headers.get("content-length", "0")) > _MAX_BODY:
            return JSONResponse({"detail": f"send at most {_MAX_BODY} bytes at once"}, 413)
        body = await request.body()
        now_us = clock_us()
        rows, refused, readable = intake.read(body, now_us)
        try:
            if rows:
                await asyncio.wrap_future(committer.put(rows))
            if refused:
                await asyncio.to_thread(side.add, refused, now_us)
        except Exception as problem:  # noqa: BLE001 (answered, so that the sender tries again)
            LOG.error("events not stored: %s", problem)
            return JSONResponse({"detail": f"not stored, send again: {problem}"}, 503)
        answer: dict[str, object] = {"accepted": len(rows), "malformed": len(refused)}
        if refused:
            answer["reasons"] = [why for why, _ in refused[:10]]
        return JSONResponse(answer, 200 if readable else 400)

    @app.get("/v1/status")
    def status() -> dict[str, object]:
        done = head_tick(home)
        newest = read_tick(home, done - 1) if done else None
        return {
            "line": spec.line,
            "head": writer.head,
            "last_arrival_us": writer.last_us,
            "malformed": side.count,
            "ticks": done,
            "events_to": newest.events[1] if newest else 0,
            "at_us": newest.at_us if newest else None,
        }

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "line": spec.line}

    return app


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as problem:
        listener.close()
        raise EnvironmentFault(
            f"{host}:{port}: {problem.strerror}; stop what uses it or set HEADRACE_COLLECTOR_PORT"
        ) from problem
    return listener
