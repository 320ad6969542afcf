"""Several processes that learn the same batches: each computes a share, all apply the whole.

Every process holds the full state and reads every batch. Of a batch's rows each runs its share
through the network; what a step needs of the others, slopes and gradients of the embeddings row by
row and sums for the dense weights, is exchanged in one collective operation a step. Then every
process takes the same step over the same numbers in the same order, so that their states stay
equal bit for bit.

Beside one process alone: a model without a network is not shared, each process learns all of it,
and its bytes are the same. Sums for a network's weights are added by shares, so they differ in
their last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from headrace.errors import EnvironmentFault, InputError
from headrace.model.runtime import tf

Tensor = Any  # tensorflow has no types that mypy could follow


@dataclass(frozen=True)
class Peers:
    """This process' place among those that learn together; alone by default.

    `gather` maps a vector (n,) to those of all processes (count, n), in the order of `index`;
    `compile` wraps a step so that `gather` may be called in it.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[Tensor], Tensor] | None = None
    compile: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda step: step

    @classmethod
    def connect(cls, addresses: Sequence[str], index: int) -> Peers:
        """Join the others by TensorFlow's `MultiWorkerMirroredStrategy`; waits for all of them.

        addresses: `host:port` of each process. Only one device a process is used. Raises
        `InputError` for a place that is not there. Steps belong into `watched`.
        """
        if not 0 <= index < len(addresses):
            raise InputError(
                f"worker {index} of {len(addresses)}: give an index from 0 to {len(addresses) - 1}"
            )
        if len(addresses) == 1:
            return cls()
        _one_device(index)
        of_all = tf.train.ClusterSpec({"worker": list(addresses)})
        place = tf.distribute.cluster_resolver.SimpleClusterResolver(
            of_all, task_type="worker", task_id=index, rpc_layer="grpc"
        )
        strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=place)

        def gather(vector: Tensor) -> Tensor:
            context = tf.distribute.get_replica_context()
            return context.all_gather(vector[None], axis=0)

        def compiled(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return lambda *arguments: strategy.run(step, args=arguments)

        return cls(index, len(addresses), gather, compiled)

    def agree(self, facts: Sequence[float]) -> None:
        """Wait for all processes; raise `EnvironmentFault` unless all of them say the same."""
        if self.gather is None:
            return
        ask = tf.function(self.compile(self.gather), autograph=False)
        told = ask(tf.constant(facts, tf.float64)).numpy()
        if (told != told[0]).any():
            raise EnvironmentFault(
                f"the workers disagree about what to learn: {told.tolist()}; let all of them see "
                "the same home, and say where the history ends (--to-tick)"
            )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise `PeerLost` for a step that fails in the block because another process is gone."""
        gone = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
        try:
            yield
        except (*gone, tf.errors.InternalError, tf.errors.DeadlineExceededError) as problem:
            if self.gather is None:
                raise
            raise PeerLost(
                f"a worker of the group is gone ({str(problem).splitlines()[0]}); start all of "
                "them again, they go on from the last checkpoint"
            ) from problem

    def share(self, rows: int) -> slice:
        """Which rows of a batch this process computes."""
        return self._shares(rows)[self.index]

    def exchange(
        self, by_row: Sequence[Tensor], summed: Tensor, rows: int
    ) -> tuple[list[Tensor], Tensor]:
        """Join `by_row`, each (share, …), to tensors of all `rows`, and add up `summed`, (n,).

        Sums are taken in the order of the processes, whatever carried them.
        """
        if self.gather is None:
            return list(by_row), summed
        shares = self._shares(rows)
        longest = max(part.stop - part.start for part in shares)
        own = shares[self.index].stop - shares[self.index].start
        widths = [int(tensor.shape[1]) if len(tensor.shape) > 1 else 1 for tensor in by_row]
        packed = tf.concat(
            [tf.reshape(t, [own, w]) for t, w in zip(by_row, widths, strict=True)], 1
        )
        packed = tf.pad(packed, [[0, longest - own], [0, 0]])
        gathered = self.gather(tf.concat([tf.reshape(packed, [-1]), summed], 0))
        of_rows, of_sums = tf.split(gathered, [longest * sum(widths), int(summed.shape[0])], 1)
        blocks = tf.reshape(of_rows, [self.count, longest, sum(widths)])
        whole = tf.concat([blocks[i, : part.stop - part.start] for i, part in enumerate(shares)], 0)
        parts = tf.split(whole, widths, axis=1)
        total = of_sums[0]
        for place in range(1, self.count):
            total += of_sums[place]
        shapes = [[rows, *tensor.shape[1:]] for tensor in by_row]
        return [tf.reshape(p, s) for p, s in zip(parts, shapes, strict=True)], total

    def _shares(self, rows: int) -> list[slice]:
        cuts = [rows * place // self.count for place in range(self.count + 1)]
        return [slice(start, stop) for start, stop in pairwise(cuts)]


class PeerLost(EnvironmentFault):
    """Another process of the group ended, so that no step can be taken any more."""


def _one_device(index: int) -> None:
    """Use one accelerator a process: `MultiWorkerMirroredStrategy` would take all of them."""
    if found := tf.config.list_physical_devices("GPU"):
        tf.config.set_visible_devices(found[index % len(found)], "GPU")
