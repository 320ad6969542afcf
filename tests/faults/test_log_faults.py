"""The event log in Kafka through kills of its writer and its broker and a cut network."""

from __future__ import annotations

import random
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.errors import EnvironmentFault
from headrace.log.files import FileLog
from headrace.log.kafka import KafkaLog
from tests.diary import Diary, Work
from tests.faults.proxy import Proxy
from tests.faults.told import accounted, tell
from tests.lives import Lives
from tests.spark.broker import Broker, installed, topic

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(1500)]

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("text", pa.string())])
TOTAL = 6_000
AT_ONCE = 20
KILLS = 20
MOVED = 8
TEST = "tests/faults/test_log_faults.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    installed()
    found = Broker(tmp_path_factory.mktemp("kafka"))
    found.start()
    yield found
    found.kill()


def rows(start: int, stop: int) -> pa.Table:
    numbers = range(start, stop)
    return pa.table([list(numbers), [str(n) * 400 for n in numbers]], schema=SCHEMA)


def opened(folder: Path, address: str, name: str) -> KafkaLog:
    return KafkaLog(folder, SCHEMA, address, name, writer=True, timeout_s=30)


def live(folder: str, address: str, name: str) -> None:
    """What a sender does: ask how far the log is, send what follows."""
    log = opened(Path(folder), address, name)
    diary = Diary(Path(f"{folder}.diary"))
    while (head := log.head) < TOTAL:
        diary.begins(head)
        log.append(rows(head, min(head + AT_ONCE, TOTAL)))
        diary.done(head)
    log.close()


def same_everywhere(folder: Path, address: str, name: str) -> dict[str, int]:
    """The copy holds each record once and equals one that is fetched anew."""
    mine, fresh = opened(folder, address, name), opened(folder.with_name("fresh"), address, name)
    whole = mine.read(0, mine.head)
    assert fresh.read(0, fresh.head).equals(whole)
    mine.close()
    fresh.close()
    shutil.rmtree(folder.with_name("fresh"))
    counts = accounted(whole["n"].to_pylist(), TOTAL)
    assert counts == {"lost": 0, "duplicated": 0}
    assert whole.equals(rows(0, TOTAL))
    return counts


def test_a_killed_writer_leaves_each_record_once_and_its_copy_whole(
    server: Broker, tmp_path: Path
) -> None:
    dice, moved, works = random.Random(3), 0, []
    with Lives("tests.faults.test_log_faults:live", ("headrace.log.kafka",)) as lives:
        calm = lives.live(str(tmp_path / "calm"), server.address, uuid.uuid4().hex)
        assert calm.code == 0
        # a run through all records, as many as are needed
        while sum(len(work.repeated) for work in works) < KILLS or moved < MOVED:
            name, folder = uuid.uuid4().hex, tmp_path / f"log{len(works)}"
            ended, killed_at = False, []
            while not ended:
                before = FileLog(folder, SCHEMA).head
                life = lives.live(
                    str(folder), server.address, name, kill_after_s=dice.uniform(0, calm.lived_s)
                )
                ended = not life.killed
                killed_at += [time.monotonic()] * life.killed
                moved += life.killed and FileLog(folder, SCHEMA).head > before
                assert life.killed or life.code == 0
            counts = same_everywhere(folder, server.address, name)
            works.append(Work.between(Path(f"{folder}.diary"), killed_at))
    work = Work.of(works)
    tell(
        "kafka_writer_kills",
        "the writer of the event log in Kafka killed by SIGKILL at random moments",
        TEST,
        {"with appends stored in that life": moved, "without": len(work.repeated) - moved},
        "every record once and in order, in the topic and in the copy",
        counts,
        work.recovered_s,
        work.repeated,
        f"appends of {AT_ONCE} records",
    )


def storm(
    folder: Path, address: str, name: str, strike: Callable[[int], bool]
) -> tuple[list[float], list[int]]:
    """Append to the end while `strike(round)` breaks and mends.

    `strike` is called in a thread of its own, until it returns False. Returns seconds from mended
    to going on, and how many appends each round had to be sent again.
    """
    mended: list[float] = []
    recovered: list[float] = []
    again: Counter[int] = Counter()

    def blows() -> None:
        turn = 0
        while strike(turn):
            mended.append(time.monotonic())
            turn += 1

    log, failed = opened(folder, address, name), False
    thread = threading.Thread(target=blows)
    thread.start()
    while log.head < TOTAL or thread.is_alive():
        try:
            head = log.head
            log.append(rows(head, min(head + AT_ONCE, TOTAL)))
        except EnvironmentFault:
            again[len(mended)] += not failed  # until it is through, it is the same one
            failed = True
            time.sleep(0.1)
            continue
        if failed and mended:
            recovered.append(time.monotonic() - mended[-1])
        failed = False
        time.sleep(0.01)
    thread.join()
    log.close()
    return recovered, [again[turn] for turn in range(len(mended) + 1)]


def test_a_broker_killed_in_mid_write_comes_back_with_each_record_once(
    server: Broker, tmp_path: Path
) -> None:
    name, dice, kills = uuid.uuid4().hex, random.Random(4), 3
    topic(server.address, name, 1)

    def strike(turn: int) -> bool:
        time.sleep(dice.uniform(0.5, 1.5))
        server.kill()
        time.sleep(0.5)
        server.start()
        return turn + 1 < kills

    recovered, again = storm(tmp_path / "log", server.address, name, strike)
    counts = same_everywhere(tmp_path / "log", server.address, name)
    tell(
        "kafka_broker_kills",
        "the Kafka broker killed by SIGKILL in mid-write and started again",
        TEST,
        {"while records were sent": kills},
        "every record once and in order, in the topic and in the copy",
        counts,
        recovered,
        again,
        f"appends of {AT_ONCE} records",
    )


def test_a_network_that_is_cut_in_mid_write_leaves_each_record_once(tmp_path: Path) -> None:
    installed()
    dice, cuts, name = random.Random(5), 12, uuid.uuid4().hex
    broker = Broker(tmp_path)
    with Proxy(broker.port) as proxy:
        broker.advertise(proxy.port)
        broker.start()
        try:
            address = f"127.0.0.1:{proxy.port}"

            def strike(turn: int) -> bool:
                time.sleep(dice.uniform(0.05, 0.6))
                proxy.cut()
                time.sleep(dice.uniform(0, 0.5))
                proxy.heal()
                return turn + 1 < cuts

            recovered, again = storm(tmp_path / "log", address, name, strike)
            counts = same_everywhere(tmp_path / "log", address, name)
        finally:
            broker.kill()
        tell(
            "kafka_network_cuts",
            "the network between the writer of the event log and Kafka cut in mid-write",
            TEST,
            {"while records were sent": proxy.cuts},
            "every record once and in order, in the topic and in the copy",
            counts,
            recovered,
            again,
            f"appends of {AT_ONCE} records",
        )
