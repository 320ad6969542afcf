"""One life of a group: start its processes, and end all of them when one dies.

TensorFlow's server listens on every interface and asks nobody who they are. So a group runs in
a network namespace of its own, where there is nothing but its loopback; see `supervisor`.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from headrace.atomic import write_json
from headrace.workers.job import LOST

PIDS: Final = "workers.json"
_SET_FLAGS, _UP = 0x8914, 0x1  # SIOCSIFFLAGS, IFF_UP of Linux
_POLL_S: Final = 0.05


def main(folder: Path, count: int, *, alone: bool) -> int:
    """Run `count` workers over the job in `folder` to their end; returns the exit code.

    It is 0, the code of the mistake that one of them names, or `LOST`: start again. `alone`: this
    process has a network namespace of its own.
    """
    if alone:
        _raise_loopback()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(count)]
    running = [_start(folder, addresses, index) for index in range(count)]
    write_json(folder / PIDS, {"pids": [worker.pid for worker in running]})
    while True:
        codes = [worker.poll() for worker in running]
        if any(codes) or None not in codes:
            break
        time.sleep(_POLL_S)
    for worker in running:
        worker.send_signal(signal.SIGKILL)  # waits for a peer that will not answer
    for worker in running:
        worker.wait()
    mistakes = [code for code in codes if code is not None and 0 < code < LOST]
    return mistakes[0] if mistakes else LOST if any(codes) else 0


def _start(folder: Path, addresses: list[str], index: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "headrace.workers.worker", str(folder), str(index), *addresses]
    with (folder / f"worker-{index}.log").open("wb") as log:
        told = None if index == 0 else log
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=told, stderr=log)


def _end_with_parent() -> None:
    while os.read(0, 1):
        continue
    os._exit(LOST)  # the workers' stdin closes with this process


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _raise_loopback() -> None:
    """Make 127.0.0.1 reachable in a fresh network namespace."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), alone=sys.argv[3] == "alone"))
