"""One process of a group on this machine: its exit code and its words are for `group`.

The first process tells its progress. One whose peers are gone ends with `LOST`: no step can be
taken without them, so all start again.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.passes import Point
from headrace.workers.job import LOST, Job
from headrace.workers.share import work


def main(folder: Path, addresses: list[str], index: int) -> int:
    """Work, told on the command line; returns the exit code."""
    from headrace.model.peers import PeerLost

    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(point: Point, blocks: int) -> None:
        if index == 0:
            told = {"epoch": point.epoch, "block": point.block, "blocks": blocks}
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()

    try:
        work(Job.read(folder), addresses, index, after=tell)
    except PeerLost as problem:
        sys.stderr.write(f"worker {index}: {problem}\n")
        return LOST
    except HeadraceError as problem:
        sys.stderr.write(f"{problem}\n")
        return problem.exit_code
    except Exception:  # noqa: BLE001 - the log is the only place to tell it
        traceback.print_exc()
        return 1
    return 0


def _end_with_parent() -> None:
    """Nobody is left to wait for the result: the other end of stdin is closed."""
    while os.read(0, 1):
        continue
    os._exit(LOST)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), sys.argv[3:], int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # TensorFlow's way out would wait for peers that may be dead
