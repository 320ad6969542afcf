"""Signals while a stack starts, runs and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `SystemExit(128 + n)`, as Ctrl-C raises `KeyboardInterrupt`.

    What was ignored (`nohup`) stays ignored. Outside the main thread this does nothing.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    with _handled(leave, [signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]):
        yield


@contextmanager
def signals_wait() -> Iterator[None]:
    """Nobody can interrupt the ending: further Ctrl-C, SIGTERM and SIGHUP are dropped."""

    def drop(_number: int, _frame: FrameType | None) -> None:
        return

    with _handled(drop, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]):
        yield


@contextmanager
def _handled(handler: Handler, numbers: list[signal.Signals]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
