"""How tests are shared out where two run at a time, and what a process of tests keeps."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from typing import Any, Final

import pytest
from xdist.scheduler import LoadFileScheduling

from headrace.garbage import seldom

STACKS: Final = ("tests/dags/", "tests/browser/", "tests/e2e/test_api_docs.py")
SYNC: Final = os.fsync


class OneStackAtATime(LoadFileScheduling):  # type: ignore[misc]
    """A file's tests run one after the other; so do all that start whole stacks.

    Two stacks at once would wait for each other longer than their tests allow.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "stacks" if nodeid.startswith(STACKS) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneStackAtATime:
    return OneStackAtATime(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported to collect the tests stays: the garbage collector need not look at it.

    TensorFlow, Feast and the others are a million objects; to go through them again and again
    took a quarter of the time of collecting the tests and a tenth of that of running them.
    """
    seldom()
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Only where processes are killed or disks fail is the disk waited for: no test cuts power."""
    kept = any(map(item.get_closest_marker, ("e2e", "faults")))
    os.fsync = SYNC if kept else _not_waited_for


def _not_waited_for(file: Any) -> None:
    os.fstat(file if isinstance(file, int) else file.fileno())  # what is no open file is told
