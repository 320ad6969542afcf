"""A short-lived process looks for garbage seldom, and still finds it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import atexit, gc, weakref
atexit.register(lambda: print("frozen", gc.get_freeze_count() > 0))
from headrace import garbage
garbage.seldom()
class Node: pass
node = Node()
node.itself, seen = node, weakref.ref(node)
del node
kept = [[] for _ in range(garbage.NEW_OBJECTS // 2)]
print("early", seen() is not None)
kept += [[] for _ in range(garbage.NEW_OBJECTS)]
print("late", seen() is None)
"""


def test_garbage_is_found_late_and_not_looked_for_at_the_end() -> None:
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    ).stdout
    assert told.splitlines() == ["early True", "late True", "frozen True"]
