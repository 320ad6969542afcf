"""How tests are shared out where two run at a time (`pytest -n 2`)."""

from __future__ import annotations

from typing import Any, Final

import pytest
from xdist.scheduler import LoadFileScheduling

STACKS: Final = ("tests/dags/", "tests/browser/", "tests/e2e/test_api_docs.py")


class OneStackAtATime(LoadFileScheduling):  # type: ignore[misc]
    """A file's tests run one after the other; so do all that start whole stacks.

    Two stacks at once would wait for each other longer than their tests allow.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "stacks" if nodeid.startswith(STACKS) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneStackAtATime:
    return OneStackAtATime(config, log)
