"""What the collector takes for an event, and the field it names where it does not."""

from __future__ import annotations

import json

import pytest

from headrace.ingest.intake import DAY_US, Intake, TooMany
from tests.campaign import SECOND, SPEC, posted

NOW = 1_700_000_000 * SECOND


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event": None}, "event: None"),
        ({"event": "mark"}, "event: 'mark'"),
        ({"impression_id": None}, "impression_id"),
        ({"impression_id": 5}, "impression_id"),
        ({"request_id": 5}, "request_id"),
        ({"event_at": None}, "event_at"),
        ({"event_at": True}, "event_at"),
        ({"event_at": 1.5}, "event_at"),
        ({"event_at": -1}, "before 1970"),
        ({"event_at": NOW + DAY_US + 1}, "future"),
        ({"event_at": "yesterday"}, "ISO 8601"),
        ({"event_at": "2023-11-14T22:13:20"}, "no zone"),
        ({"value": "1"}, "value"),
        ({"value": 2**63}, "value"),
        ({"event": "click", "value": 0}, "value"),
        ({"user_id": 7}, "user_id"),
        ({"user_id": "\ud800"}, "user_id"),
        ({"position": 1.0}, "position"),
        ({"position": True}, "position"),
        ({"discount": "0.5"}, "discount"),
        ({"discount": float("nan")}, "discount"),
        ({"discount": 10**400}, "discount"),
        ({"arrival_at": 1}, "arrival_at"),
    ],
)
def test_malformed_events_are_refused_with_the_field(changes, reason):
    body = json.dumps({"events": [posted("a", event_at=NOW) | changes]}).encode()
    rows, refused, readable = Intake(SPEC).read(body, NOW)
    assert (rows, readable, len(refused)) == ([], True, 1)
    assert reason in refused[0][0]


def test_times_with_any_zone_are_read_exactly():
    for text in ("2023-11-14T22:13:20.000001Z", "2023-11-14T23:13:20.000001+01:00"):
        assert Intake(SPEC).row(posted("a", event_at=text), NOW)["event_at"] == NOW + 1


def test_more_events_than_a_request_may_carry_are_not_looked_at():
    body = json.dumps({"events": [7] * 4}).encode()
    assert len(Intake(SPEC, 4).read(body, NOW)[1]) == 4
    with pytest.raises(TooMany, match="4 events; send at most 3"):
        Intake(SPEC, 3).read(body, NOW)
