"""Who may send events, and who may see what the collector holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from headrace.events import event_schema
from headrace.ingest.door import Door
from headrace.ingest.limits import Refusal
from headrace.log.files import FileLog
from headrace.settings import Settings, load_settings
from headrace.simulate.outbox import Outbox
from headrace.simulate.truth import TruthLog
from tests.campaign import SPEC, Pushed, ingesting, posted, value_of, wait_for

COLLECT, ADMIN = "collect-0123456789abcdef", "admin-0123456789abcdef"


def bearing(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
def guarded(settings: Settings) -> Settings:
    return replace(settings, collect_token=COLLECT, admin_token=ADMIN)


@pytest.fixture
def client(guarded: Settings) -> Iterator[httpx.Client]:
    with ingesting(guarded, SPEC, Pushed()) as client:
        yield client


def test_events_come_in_with_a_token_and_nothing_is_kept_of_others(client, guarded):
    body = {"events": [posted("a")]}
    for headers in ({}, bearing("x" * 16), {"authorization": COLLECT}, bearing(COLLECT + "x")):
        answer = client.post("/v1/events", json=body, headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (401, "unknown")
        assert answer.headers["www-authenticate"] == 'Bearer realm="headrace"'
        assert "Bearer <token>" in answer.json()["detail"]
        assert COLLECT not in answer.text
    log = FileLog(guarded.line_home(SPEC.line) / "log" / "events", event_schema(SPEC))
    assert log.head == 0
    for token in (COLLECT, ADMIN):
        answer = client.post("/v1/events", json=body, headers=bearing(token))
        assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
    shown = client.get("/metrics", headers=bearing(ADMIN)).text
    assert value_of(shown, "headrace_ingest_requests_refused_total", reason="unknown") == 4


def test_only_the_admin_token_shows_what_the_collector_holds(client):
    assert client.get("/health").status_code == 200
    for path in ("/v1/status", "/metrics"):
        for headers in ({}, bearing(COLLECT)):
            assert client.get(path, headers=headers).status_code == 401
        assert client.get(path, headers=bearing(ADMIN)).status_code == 200


def test_the_simulators_sender_shows_the_token(client, guarded, tmp_path):
    truth = TruthLog(tmp_path / "truth", "door")
    outbox = Outbox(f"{guarded.collector_url}/v1/events", truth, guarded.collect_headers)
    outbox.put(0, posted("b"))
    outbox.start()
    wait_for(lambda: outbox.counts["accepted"] == 1)
    outbox.close()


def test_without_tokens_nobody_is_asked(settings):
    door = Door(settings)
    door.send(None)
    door.look(None)
    with pytest.raises(Refusal, match="sending events needs a token and no token came"):
        Door(replace(settings, collect_token=COLLECT)).send(None)


@pytest.mark.parametrize(
    ("host", "token", "warns"),
    [("127.0.0.1", None, False), ("0.0.0.0", None, True), ("0.0.0.0", COLLECT, False)],
)
def test_a_collector_that_a_network_reaches_warns_of_its_open_door(
    settings, caplog, host, token, warns
):
    with caplog.at_level(logging.WARNING):
        Door(replace(settings, collect_token=token, host=host)).warn("coupons")
    assert ("may send events; set HEADRACE_COLLECT_TOKEN" in caplog.text) is warns


def test_the_token_is_in_no_repr():
    found = load_settings({"HEADRACE_COLLECT_TOKEN": COLLECT})
    assert found.collect_token == COLLECT
    assert COLLECT not in repr(found)
