"""A share of a full training: every block with its peers, from the last checkpoint on.

The first process writes the checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from headrace import passes
from headrace.passes import Point
from headrace.past import Rows
from headrace.workers.job import Job


def work(
    job: Job,
    addresses: Sequence[str],
    index: int,
    facts: Sequence[float] = (),
    after: Callable[[Point, int], None] = lambda point, blocks: None,
) -> None:
    """Learn the job's rows as process `index` of those at `addresses`; the state is then in the
    checkpoint.

    Raises `EnvironmentFault` unless all processes start from the same point, with equally many
    rows and the same `facts`; `PeerLost` when one of them ends early.
    """
    from headrace.model import Model
    from headrace.model.peers import Peers

    rows, peers = Rows(job.rows), Peers.connect(addresses, index)
    model = Model(job.model, job.seed, peers=peers, conversion=job.conversion)
    found = passes.load(job.checkpoint)
    start = Point()
    if found is not None:
        start, state = found
        model.load_state(state)
    saved_s = time.monotonic()

    def each(point: Point) -> None:
        nonlocal saved_s
        if index == 0 and time.monotonic() - saved_s >= job.checkpoint_s:
            passes.save(job.checkpoint, point, model.state())
            saved_s = time.monotonic()
        after(point, rows.blocks)

    with peers.watched():
        peers.agree([start.epoch, start.block, start.rows, rows.blocks, *facts])
        ended = passes.learn(model, rows, job.model.epochs, start, each)
        if index == 0:
            passes.save(job.checkpoint, ended, model.state())
        peers.agree([ended.epoch])  # nobody leaves before the result is on the disk
