"""The resident process of a line that a stream feeds, in place of `headrace ingest`."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable

import pyarrow as pa

from headrace import spark
from headrace.atomic import disk_faults
from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.ingest.online import FeastOnline, Online
from headrace.log.stamp import clock_us, event_writer
from headrace.settings import Settings
from headrace.stream.feed import Closed, Feed
from headrace.stream.files import Files, Objects
from headrace.stream.source import Kafka

LOG = logging.getLogger(__name__)


def run(
    settings: Settings,
    spec: LineSpec,
    source: Files | Objects | Kafka,
    stop: threading.Event,
    *,
    master: str = "local[2]",
    once: bool = False,
    online: Online | None = None,
    clock: Callable[[], int] = clock_us,
) -> None:
    """Feed the line from `source` each `cadence.tick` until `stop`, or `once` with what is there.

    Spark finds what is new and reads it; log, state and ticks stay in this process. On `stop`
    the batch at work is finished. Raises `EnvironmentFault` without Java, the broker, the bucket
    or the source's jars, and when Spark's query fails; what `Feed` raises comes through. `online`
    defaults to Feast's online store.
    """
    source.check(settings)
    jars = source.jars(settings)
    home = settings.line_home(spec.line)
    checkpoint = home / "stream" / "checkpoint"
    with disk_faults(home), spark.session(master, jars=jars) as session:
        writer = event_writer(settings, spec, clock)
        online = online or FeastOnline(settings, spec)
        feed = Feed(spec, home, str(source), online, clock, writer=writer)

        def take(rows: pa.Table, batch: int) -> None:
            query = json.loads((checkpoint / "metadata").read_text(encoding="utf-8"))["id"]
            feed.deliver(query, batch, source.values(rows))

        try:
            every_us = None if once else spec.cadence.tick
            frame = source.frame(session, spec, settings)
            batches = spark.Batches(frame, take, checkpoint, every_us=every_us)
            LOG.info("line %s: fed from %s", spec.line, source)
            while batches.active and not stop.wait(spec.cadence.tick / 1e6):
                if not once:
                    feed.idle()
        finally:
            feed.close()
        batches.stop()
        if batches.failed is not None and not isinstance(batches.failed, Closed):
            raise batches.failed
        if batches.problem is not None and not stop.is_set():
            source.check(settings)  # what has gone since tells of itself more clearly
            raise EnvironmentFault(
                f"{source}: {batches.problem}; correct or take away what Spark cannot read, then "
                "start again"
            )
