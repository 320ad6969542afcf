"""How tests are shared out when two run at a time (`pytest -n 2 --dist loadgroup`)."""

from __future__ import annotations

from typing import Final

import pytest

STACKS: Final = ("tests/dags/", "tests/browser/", "tests/e2e/test_api_docs.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests run one after the other; so do all that start whole stacks.

    Two stacks at once would wait for each other longer than their tests allow.
    """
    for item in items:
        file = item.nodeid.partition("::")[0]
        group = "stack" if file.startswith(STACKS) else file
        item.add_marker(pytest.mark.xdist_group(group))
