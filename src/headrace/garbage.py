"""Python's garbage collector in a process that imports much, works a little and ends."""

from __future__ import annotations

import atexit
import gc
from typing import Final

NEW_OBJECTS: Final = 100_000


def seldom() -> None:
    """Look for garbage after each `NEW_OBJECTS` objects in place of 700, and not as Python ends.

    An import of TensorFlow makes 700,000 objects that stay, one of Great Expectations 560,000. To
    look through them again and again takes a third of their import's CPU seconds, and once more,
    as the interpreter takes them down, seconds.
    """
    gc.set_threshold(NEW_OBJECTS)
    atexit.register(gc.freeze)
