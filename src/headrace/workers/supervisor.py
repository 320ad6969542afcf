"""Start a group of workers on this machine, and again from its checkpoint while one dies."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace import passes
from headrace.errors import EnvironmentFault, HeadraceError, InputError
from headrace.passes import Point
from headrace.workers.job import LOST, Job

if TYPE_CHECKING:
    from headrace.model import State

LOG = logging.getLogger(__name__)
STARTS: Final = 4
"""So often a group is started without coming further before its training is given up."""
MOST_WORKERS: Final = 64
_ALONE: Final = ["unshare", "--user", "--map-root-user", "--net"]

After = Callable[[Point, int], None]


def learn(job: Job, workers: int, after: After = lambda point, blocks: None) -> tuple[Point, State]:
    """Learn the job's rows by `workers` processes; returns the end and the state there.

    A group that loses a process goes on from its last checkpoint, in the same bytes as if nothing
    had happened. `after` is told the point and the number of blocks. Raises what a worker names
    as a mistake, `InputError` for no number of workers, `EnvironmentFault` when `STARTS` groups in
    a row died without coming further.
    """
    require_number(workers)
    job.write()
    reached, starts, alone = Point(), 0, _can_be_alone()
    while True:
        starts += 1
        code = _live(job, workers, alone, after)
        found = passes.load(job.checkpoint)
        if code == 0 and found is not None:
            return found
        if code not in (0, LOST):
            raise _mistake(code, _last_words(job.folder, workers))
        if found is not None and (found[0].epoch, found[0].block) > (reached.epoch, reached.block):
            reached, starts = found[0], 0
        if starts >= STARTS:
            raise EnvironmentFault(
                f"{workers} workers died {STARTS} times without coming further; the last said: "
                f"{_last_words(job.folder, workers)}; free memory, or take fewer workers"
            )
        LOG.warning("a worker died; all go on from epoch %d, block %d", reached.epoch + 1,
                    reached.block)  # fmt: skip


def require_number(workers: int) -> None:
    """Raise `InputError` unless so many workers can be asked for."""
    if not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"workers={workers}: give a number from 1 to {MOST_WORKERS}")


def _live(job: Job, workers: int, alone: bool, after: After) -> int:
    """One life of a group; returns its exit code."""
    command = [sys.executable, "-m", "headrace.workers.group", str(job.folder), str(workers)]
    command = [*_ALONE, *command, "alone"] if alone else [*command, "shared"]
    with (
        (job.folder / "group.log").open("wb") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as group,
    ):
        assert group.stdout is not None
        for line in group.stdout:
            told = json.loads(line)
            after(Point(told["epoch"], told["block"]), told["blocks"])
    return group.returncode


def _can_be_alone() -> bool:
    """Whether this user may start processes in a network namespace of their own."""
    try:
        if subprocess.run([*_ALONE, "true"], capture_output=True, check=False).returncode == 0:
            return True
    except FileNotFoundError:
        LOG.debug("no unshare on this machine")
    LOG.warning(
        "TensorFlow's workers listen on every interface of this machine and ask for no password: "
        "no network namespace of their own can be had here (unshare --user --net)"
    )
    return False


def _last_words(folder: Path, workers: int) -> str:
    logs = [folder / "group.log", *(folder / f"worker-{index}.log" for index in range(workers))]
    lines = [line for log in logs if log.exists() for line in log.read_text().splitlines() if line]
    return lines[-1] if lines else "nothing"


def _mistake(code: int, words: str) -> HeadraceError:
    """The error of that exit code, as a worker told it."""
    kinds = {kind.exit_code: kind for kind in HeadraceError.__subclasses__()}
    return kinds.get(code, HeadraceError)(words)
