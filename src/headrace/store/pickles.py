"""Nothing that a registry holds is unpickled here.

Feast keeps a function twice: as source text, and as bytes of dill, which run whatever they say when
they are read. A registry may lie on S3 or in PostgreSQL, so bytes of others would run in every
process that opens it. Feast 0.67 turns to dill where the text is missing, and always for stream
feature views, profilers and substrait plans. Here it is refused: functions of lines have a text.
"""

from __future__ import annotations

import sys
from typing import Any

from headrace.errors import IntegrityError


def refuse_pickles() -> None:
    """Let dill refuse Feast, in this process; who else calls it gets what it asks for.

    Feast reads in many modules, some of which it imports when it needs them, so dill is where they
    all pass. `IntegrityError` is raised then. Safe to repeat.
    """
    import dill

    unpickle = dill.loads
    if getattr(unpickle, "refuses_feast", False):
        return

    def loads(*given: Any, **options: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__", "").startswith("feast."):
            raise IntegrityError(
                "the registry holds a pickled function without its source text, and pickles are "
                "never loaded; run `headrace up` to register the lines anew, and keep stream "
                "feature views and what others write in a registry of their own"
            )
        return unpickle(*given, **options)

    loads.refuses_feast = True  # type: ignore[attr-defined]
    dill.loads = loads
