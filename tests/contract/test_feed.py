"""Batches that come again, are cut short anywhere, or do not belong: each event once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, InputError, IntegrityError
from headrace.events import event_schema
from headrace.ingest.malformed import SideLog
from headrace.ingest.tick import TickState
from headrace.log.files import FileLog
from headrace.log.stamp import EventWriter
from headrace.sample import ticks
from headrace.settings import PROJECT, load_settings
from headrace.stream.feed import Closed, Feed
from headrace.stream.files import Files
from headrace.stream.source import Kafka, parse
from tests.campaign import Nowhere

T0 = 1_700_000_000_000_000
SPEC = LineSpec.model_validate(yaml.safe_load((PROJECT / "lines" / "coupons.yaml").read_text()))


class Killed(BaseException):
    """Stands for the end of the process."""


def message(number: int) -> str:
    body = {"event": "impression", "impression_id": f"i{number}", "event_at": T0 + number}
    return json.dumps(body | {"user_id": f"u{number % 3}", "item_id": "c1", "category": "x"})


BATCHES: list[list[str | bytes | None]] = [
    [message(0), message(1), b'{"event": "buy"}'],
    [b"\xff{", None, "[1", "7"],
    [],
    [message(2).encode(), message(3)],
]


def feed(home: Path, source: str = "files:/in", now_us: int = T0 + 60_000_000) -> Feed:
    return Feed(SPEC, home, source, Nowhere(), lambda: now_us)


def deliver_all(home: Path, query: str = "q") -> None:
    """What Spark does after a start: the batches that it has not noted as ended, again."""
    taken = feed(home)
    try:
        for number, values in enumerate(BATCHES):
            taken.deliver(query, number, values)
    finally:
        taken.close()


def content(home: Path) -> tuple[list[Any], list[Any], list[Any]]:
    log = FileLog(home / "log" / "events", event_schema(SPEC))
    lines = (home / "malformed.jsonl").read_text().splitlines()
    ranges = [manifest.events for manifest in ticks(home)]
    return log.read(0, log.head).to_pylist(), [json.loads(line) for line in lines], ranges


def test_a_batch_that_comes_again_is_passed_over(tmp_path):
    deliver_all(tmp_path)
    once = content(tmp_path)
    deliver_all(tmp_path)
    assert content(tmp_path) == once
    rows, refused, ranges = once
    assert [row["impression_id"] for row in rows] == ["i0", "i1", "i2", "i3"]
    assert ranges == [(0, 2), (2, 4)]
    assert [(line["raw"], line["reason"].split(":")[0]) for line in refused] == [
        ('{"event": "buy"}', "event"),
        ("\ufffd{", "message"),
        (None, "message"),
        ("[1", "message"),
        ("7", "event"),
    ]


def moments() -> Iterator[tuple[str, int]]:
    """Every write of a delivery, as (what, which time)."""
    for name, times in (("note", 8), ("malformed", 2), ("append", 2), ("tick", 2)):
        yield from ((name, time) for time in range(times))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("name", "time"), moments())
def test_a_kill_at_any_write_ends_in_the_same_log(tmp_path, monkeypatch, name, time, after):
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    deliver_all(calm)
    import headrace.stream.feed as module

    target, attribute = {
        "note": (module, "write_json"),
        "malformed": (SideLog, "add"),
        "append": (EventWriter, "append"),
        "tick": (TickState, "commit"),
    }[name]
    real, calls = getattr(target, attribute), []

    def dying(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == time + 1 and not after:
            raise Killed
        result = real(*arguments)
        if len(calls) == time + 1:
            raise Killed
        return result

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(target, attribute, dying)
        deliver_all(stormy)
    deliver_all(stormy)
    assert content(stormy) == content(calm)


def test_a_mark_between_start_and_redelivery_does_not_hide_the_batch(tmp_path, monkeypatch):
    hour_us, now = 3_600_000_000, [T0]
    taken = Feed(SPEC, tmp_path, "files:/in", Nowhere(), lambda: now[0])
    taken.deliver("q", 0, BATCHES[0])
    now[0] += hour_us
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(EventWriter, "append", lambda *_: (_ for _ in ()).throw(Killed))
        taken.deliver("q", 1, BATCHES[3])
    taken.idle()  # what is broken writes no mark
    taken.close()
    later = feed(tmp_path, now_us=T0 + hour_us)
    later.idle()
    later.deliver("q", 1, BATCHES[3])
    later.close()
    rows, refused, _ = content(tmp_path)
    events = [row["event"] for row in rows]
    assert events == ["impression", "impression", "mark", "impression", "impression"]
    assert len(refused) == 1


def test_a_foreign_checkpoint_or_source_is_refused(tmp_path):
    deliver_all(tmp_path)
    for query, batch in (("other", 0), ("other", 4), ("q", 5)):
        taken = feed(tmp_path)
        with pytest.raises(IntegrityError, match=rf"batch 3 of query q.* {batch} of {query}"):
            taken.deliver(query, batch, [message(9)])
        taken.close()
    with pytest.raises(InputError, match="was fed from files:/in"):
        feed(tmp_path, source="files:/elsewhere")
    taken = feed(tmp_path)  # the log was let go of
    with pytest.raises(EnvironmentFault, match="another process already writes this log"):
        feed(tmp_path)
    taken.close()
    with pytest.raises(Closed):
        taken.deliver("q", 4, [message(9)])
    assert len(content(tmp_path)[0]) == 4


def test_a_lost_record_is_told_before_events_enter_twice(tmp_path):
    deliver_all(tmp_path)
    (tmp_path / "stream" / "batch.json").unlink()
    taken = feed(tmp_path)
    with pytest.raises(IntegrityError, match="restore"):
        taken.deliver("q", 4, [message(4)])
    taken.close()


def test_sources_are_named_by_their_addresses(tmp_path):
    assert parse(f"files:{tmp_path}") == Files(tmp_path)
    assert parse("kafka://a:1,[::1]:2/t.x_1-y") == Kafka("a:1,[::1]:2", "t.x_1-y")
    for text in ("files:", "kafka://a/t", "kafka://a:1/", "kafka://a:1/x/y", "s3://x", ""):
        with pytest.raises(InputError, match=r"files:DIR, .* or kafka://HOST"):
            parse(text)
    with pytest.raises(InputError, match="not a folder"):
        Files(tmp_path / "none").check(load_settings({}))
