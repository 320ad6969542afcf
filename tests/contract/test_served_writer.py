"""The served log's writer: a bounded queue that refuses or sheds, and commits that give way."""

from __future__ import annotations

import os
import sys
import threading

import pyarrow as pa
import pytest

from headrace.errors import EnvironmentFault
from headrace.serving.served import NICE, NICE_LATE, ServedWriter
from tests.serving import until


class StuckLog:
    """A log whose disk is full until it is given room."""

    def __init__(self) -> None:
        self.full = True
        self.written = 0

    def append(self, table: pa.Table) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        self.written += table.num_rows
        return 0

    def join(self) -> int:
        return 0


def test_a_full_queue_refuses_and_names_the_reason_and_loses_nothing():
    log = StuckLog()
    writer = ServedWriter(log, max_rows=3, linger_s=0.01)
    writer.start()
    writer.put(pa.table({"x": [1, 2]}))
    until(lambda: writer.fault is not None)
    with pytest.raises(EnvironmentFault, match=r"queue full with 2 of 3 rows \(.*No space left"):
        writer.put(pa.table({"x": [3, 4]}))
    log.full = False
    until(lambda: writer.waiting_rows == 0)
    writer.put(pa.table({"x": [5, 6]}))
    writer.stop()
    assert log.written == 4
    with pytest.raises(EnvironmentFault, match="stopping"):
        writer.put(pa.table({"x": [7]}))


def test_a_full_queue_sheds_where_that_is_the_policy_and_counts():
    log = StuckLog()
    writer = ServedWriter(log, max_rows=3, linger_s=0.01, policy="shed")
    writer.start()
    for _ in range(3):
        writer.put(pa.table({"x": [1, 2]}))
    assert (writer.waiting_rows, writer.shed_rows) == (2, 4)
    log.full = False
    writer.stop()
    assert log.written == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority")
@pytest.mark.parametrize(("rows", "nice"), [(4, NICE), (5, NICE_LATE)])
def test_a_commit_gives_way_to_answers_but_less_where_it_is_late(rows, nice):
    seen = []

    class Watched(StuckLog):
        def append(self, table: pa.Table) -> int:
            me = threading.get_native_id()
            seen.append((os.getpriority(os.PRIO_PROCESS, me), os.sched_getscheduler(me)))
            return super().append(table)

    mine, policy = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
    log = Watched()
    log.full = False
    writer = ServedWriter(log, max_rows=16, linger_s=0.01)
    writer.put(pa.table({"x": [1] * rows}))
    writer.start()
    until(lambda: log.written == rows)
    writer.stop()
    assert seen == [(max(mine, nice), os.SCHED_BATCH)]
    me = threading.get_native_id()
    assert (os.getpriority(os.PRIO_PROCESS, me), os.sched_getscheduler(me)) == (mine, policy)


def test_a_commit_takes_no_more_than_its_share_of_the_room_and_leaves_nothing():
    sizes = []

    class Watched(StuckLog):
        def append(self, table: pa.Table) -> int:
            sizes.append(table.num_rows)
            return super().append(table)

    log = Watched()
    log.full = False
    writer = ServedWriter(log, max_rows=64, linger_s=60.0)
    for rows in (1, 2, 3, 9, 1, 1):
        writer.put(pa.table({"x": [1] * rows}))
    writer.start()
    until(lambda: log.written == 15)  # with less than that left, what comes may linger
    writer.stop()
    assert sizes == [3, 3, 9, 2]
    assert (writer.written_rows, writer.waiting_rows) == (17, 0)


def test_stop_tells_when_accepted_rows_could_not_be_written():
    writer = ServedWriter(StuckLog(), linger_s=0.01)
    writer.start()
    writer.put(pa.table({"x": [1]}))
    with pytest.raises(EnvironmentFault, match="1 accepted rows could not be written"):
        writer.stop()
