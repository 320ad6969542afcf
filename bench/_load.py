"""Load on an HTTP server of this machine: prepared requests over kept connections.

A thread for each connection writes bytes and reads an answer, nothing else, so that the load costs
little beside the server.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

TIMEOUT_S: Final = 30.0


@dataclass
class Answers:
    """What a spell of load saw: ms of each answer, from when it was due; statuses; seconds."""

    ms: list[float] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return (len(self.ms) - self.failed) / self.seconds

    def percentile(self, rank: float) -> float:
        """Milliseconds that `rank` percent of the answers took at most."""
        values: NDArray[np.float64] = np.array(self.ms)
        return float(np.percentile(values, rank))


class Connection:
    """One kept connection; answers must tell their length."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._socket.sendall(request)
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            self._read()
        head = self._rest[:end].lower()
        size = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        while len(self._rest) < end + 4 + size:
            self._read()
        body, self._rest = self._rest[end + 4 : end + 4 + size], self._rest[end + 4 + size :]
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> None:
        part = self._socket.recv(1 << 16)
        if not part:
            raise ConnectionError("the server closed the connection")
        self._rest += part


def post(path: str, body: bytes) -> bytes:
    """A whole request."""
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def flat_out(port: int, requests: Iterator[bytes], connections: int, seconds: float) -> Answers:
    """As many requests as are answered, the next one on a connection after the last answer.

    `requests` does not end; another spell goes on where this one was.
    """
    until = time.perf_counter() + seconds

    def due() -> float | None:
        now = time.perf_counter()
        return now if now < until else None

    return _drive(port, requests, connections, due)


def paced(
    port: int, requests: Iterator[bytes], rate: float, connections: int, seconds: float
) -> Answers:
    """`rate` requests a second, however slow the answers are: a late one makes the next wait."""
    moments: queue.SimpleQueue[float] = queue.SimpleQueue()
    start = time.perf_counter() + 0.05
    for number in range(int(rate * seconds)):
        moments.put(start + number / rate)

    def due() -> float | None:
        try:
            return moments.get_nowait()
        except queue.Empty:
            return None

    return _drive(port, requests, connections, due)


def _drive(
    port: int, requests: Iterator[bytes], connections: int, due: Callable[[], float | None]
) -> Answers:
    found, lock = Answers(), threading.Lock()
    problems: list[BaseException] = []

    def work() -> None:
        ms, failed = [], 0
        try:
            connection = Connection(port)
            while (moment := due()) is not None:
                with lock:
                    request = next(requests)
                if (wait := moment - time.perf_counter()) > 0:
                    time.sleep(wait)
                status, _ = connection.ask(request)
                failed += status != 200
                ms.append(1e3 * (time.perf_counter() - moment))
            connection.close()
        except (OSError, ValueError) as problem:
            problems.append(problem)
        with lock:
            found.ms += ms
            found.failed += failed

    threads = [threading.Thread(target=work) for _ in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.seconds = time.perf_counter() - began
    if problems:
        raise RuntimeError(f"the load broke off: {problems[0]}") from problems[0]
    return found
