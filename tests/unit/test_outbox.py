"""The simulator's sender: whatever the collector answers, no event is lost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.simulate.outbox import Outbox
from headrace.simulate.truth import TruthLog, read_truth
from tests.loopback import Answering, serving_on

Answer = tuple[int, dict[str, str]]


class Collector:
    """Answers as told, then takes everything; an answer of 0 cuts the connection."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers, self.taken, self.asked_at = answers, [], []

    @contextmanager
    def listening(self) -> Iterator[str]:
        told = self

        class Handler(Answering):
            def do_POST(self) -> None:
                told.asked_at.append(time.monotonic())
                body = json.loads(self._body())
                status, headers = told.answers.pop(0) if told.answers else (200, {})
                if status == 0:
                    self.close_connection = True
                    return
                if status == 200:
                    told.taken += [event["impression_id"] for event in body["events"]]
                said = {"accepted": len(body["events"]), "malformed": 0}
                self._json(status, said, headers)

        with serving_on(Handler) as address:
            yield f"http://{address}/v1/events"


def send(tmp_path: Path, collector: Collector, events: int, patience_s: float = 5.0) -> Outbox:
    """Post this many events and close."""
    truth = TruthLog(tmp_path / "truth", "run")
    with collector.listening() as url:
        outbox = Outbox(url, truth)
        for number in range(events):
            outbox.put(number, {"event": "impression", "impression_id": f"i{number}"})
        outbox.start()
        until = time.monotonic() + 10
        while len(collector.taken) < events and time.monotonic() < until and patience_s > 1:
            time.sleep(0.01)
        outbox.close(patience_s)
    truth.flush()
    return outbox


@pytest.mark.slow
def test_a_crowded_or_broken_collector_gets_the_events_later(tmp_path):
    collector = Collector([(429, {"retry-after": "1"}), (503, {}), (0, {}), (408, {}), (200, {})])
    outbox = send(tmp_path, collector, 450)
    assert sorted(collector.taken) == sorted(f"i{n}" for n in range(450))
    assert outbox.counts["pushed_back"] == 2
    assert outbox.counts["http_errors"] == 2
    assert (outbox.counts["accepted"], outbox.counts["unsent"]) == (450, 0)
    gaps = [b - a for a, b in zip(collector.asked_at, collector.asked_at[1:], strict=False)]
    assert gaps[0] >= 1.0  # what the answer asked for
    assert gaps[1] >= 0.5  # longer each time
    assert gaps[2] >= 1.0
    sent = read_truth(tmp_path, "sent")["impression_id"].to_pylist()
    assert sorted(sent) == sorted(collector.taken)


def test_refused_for_good_is_counted_and_not_sent_again(tmp_path):
    collector = Collector([(413, {})])
    outbox = send(tmp_path, collector, 3, patience_s=1.0)
    assert (outbox.counts["refused"], len(collector.asked_at)) == (3, 1)


def test_a_closing_sender_gives_up_after_its_patience_and_counts_the_rest(tmp_path, monkeypatch):
    sleep, rests = time.sleep, []

    def rest(seconds: float) -> None:
        if threading.current_thread().name == "outbox":
            rests.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", rest)
    collector = Collector([(429, {"retry-after": "3600"})] * 1000)
    outbox = send(tmp_path, collector, 7, patience_s=0.5)
    assert sum(rests) <= 0.5  # of the hour that it was asked for
    assert (outbox.counts["unsent"], outbox.counts["accepted"]) == (7, 0)
