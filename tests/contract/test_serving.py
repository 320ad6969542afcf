"""The scoring server over HTTP, on a tiny published model and real Feast."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault
from headrace.events import input_fields, served_schema
from headrace.line import LineStore
from headrace.line.races import Races
from headrace.log.files import FileLog
from headrace.model import Model
from headrace.race.arms import Arm, Race
from headrace.serving.app import create_app, run
from headrace.serving.payload import MAX_BODY_BYTES, MAX_CANDIDATES
from headrace.settings import Settings
from tests.serving import WATERMARK_US, advance, publish, served_rows, until

with warnings.catch_warnings():  # Starlette asks for httpx2, which is no dependency of ours
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient


@pytest.fixture(scope="module")
def server(applied: Settings, shop: LineSpec) -> Iterator[TestClient]:
    with TestClient(create_app(applied, shop)) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        not_ready = client.get("/v2/health/ready")
        assert not_ready.status_code == 503
        assert "not ready" in not_ready.json()["error"]
        assert client.post("/v1/score", json={"candidates": [{}]}).status_code == 503
        for i, bias in enumerate((1.0, 3.0)):
            publish(applied, shop, bias, WATERMARK_US + i)
        advance(applied, shop, "v000001")
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        yield client


def test_scores_carry_version_watermark_and_staleness(server, applied, shop):
    before = time.time()
    answer = server.post(
        "/v1/score",
        json={
            "request_id": "r1",
            "context": {"user_id": "ann"},
            "candidates": [{"item": 2**62 + 1, "price": 2}, {"item": 5, "user_id": "bob"}],
        },
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["request_id"], body["version"]) == ("r1", "v000001")
    assert body["watermark"] == "2025-06-15T15:06:40.000+00:00"
    assert before - WATERMARK_US / 1e6 <= body["staleness_s"] <= time.time() - WATERMARK_US / 1e6
    assert [s["impression_id"] for s in body["scores"]] == ["r1:0", "r1:1"]
    until(lambda: len(served_rows(applied, shop, "r1")) == 2)
    logged = served_rows(applied, shop, "r1")
    assert [row["score"] for row in logged] == [s["score"] for s in body["scores"]]
    assert [(r["user_id"], r["item"], r["price"]) for r in logged] == [
        ("ann", 2**62 + 1, 2.0),
        ("bob", 5, None),
    ]
    assert logged[0]["served_at"] == logged[1]["served_at"]
    model = Model(shop.model, shop.seed)
    model.load_state(LineStore(applied.line_store_url("shop"), "shop").load("v000001")[1])
    vectors = pa.Table.from_pylist(logged, schema=served_schema(shop))
    inputs = vectors.select([field.name for field in input_fields(shop)])
    assert model.predict(inputs).tolist() == [s["score"] for s in body["scores"]]


def test_the_open_inference_protocol_gives_the_same_scores(server, shop):
    short = server.post(
        "/v1/score",
        json={"candidates": [{"user_id": "u", "item": 1}, {"user_id": "u", "item": None}]},
    ).json()
    tensors = [
        {"name": "user_id", "shape": [2], "datatype": "BYTES", "data": ["u", "u"]},
        {"name": "item", "shape": [2], "datatype": "INT64", "data": [1, None]},
    ]
    answer = server.post("/v2/models/shop/infer", json={"id": "oip", "inputs": tensors})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("shop", "v000001", "oip")
    assert body["parameters"]["request_id"] == "oip"
    assert set(body["parameters"]) == {
        "version", "arm", "fallback", "watermark", "staleness_s", "request_id"
    }  # fmt: skip
    assert (body["parameters"]["fallback"], short["fallback"]) == ("none", "none")
    score, impression = body["outputs"]
    assert (score["name"], score["datatype"], score["shape"]) == ("score", "FP64", [2])
    assert score["data"] == [s["score"] for s in short["scores"]]
    assert impression["data"] == ["oip:0", "oip:1"]


def test_protocol_metadata(server):
    assert server.get("/v2").json()["name"] == "headrace"
    about = server.get("/v2/models/shop").json()
    assert about["versions"] == ["v000001"]
    assert about["inputs"][1] == {"name": "item", "datatype": "INT64", "shape": [-1]}
    assert server.get("/v2/models/shop/ready").json()["ready"] is True
    assert server.get("/v2/models/other").status_code == 404
    assert server.post("/v2/models/other/infer", json={"inputs": []}).status_code in (404, 422)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, ["body", "candidates"]),
        ({"candidates": []}, ["body", "candidates"]),
        ({"candidates": [{}] * (MAX_CANDIDATES + 1)}, ["body", "candidates"]),
        ({"candidates": [{"item": "5"}]}, ["body", "candidates", 0, "item"]),
        ({"candidates": [{"item": 2**63}]}, ["body", "candidates", 0, "item"]),
        ({"candidates": [{"item": True}]}, ["body", "candidates", 0, "item"]),
        ({"candidates": [{"price": "cheap"}]}, ["body", "candidates", 0, "price"]),
        ({"candidates": [{"colour": "red"}]}, ["body", "candidates", 0, "colour"]),
        ({"context": {"user_id": 7}, "candidates": [{}]}, ["body", "context", "user_id"]),
        ({"request_id": "", "candidates": [{}]}, ["body", "request_id"]),
    ],
)
def test_a_wrong_request_is_refused_with_the_path_of_the_field(server, body, path):
    answer = server.post("/v1/score", json=body)
    assert answer.status_code == 422, answer.text
    assert path in [problem["loc"] for problem in answer.json()["detail"]]


@pytest.mark.parametrize(
    ("tensor", "path"),
    [
        ({"name": "colour"}, ["body", "inputs", 0, "name"]),
        ({"datatype": "BYTES"}, ["body", "inputs", 0, "datatype"]),
        ({"shape": [3]}, ["body", "inputs", 0, "shape"]),
        ({"data": [1, 2.5]}, ["body", "inputs", 0, "data", 1]),
        ({"data": []}, ["body", "inputs", 0, "data"]),
    ],
)
def test_a_wrong_tensor_is_refused_with_its_path(server, tensor, path):
    good = {"name": "item", "shape": [2], "datatype": "INT64", "data": [1, 2]}
    answer = server.post("/v2/models/shop/infer", json={"inputs": [good | tensor]})
    assert answer.status_code == 422, answer.text
    assert path in [problem["loc"] for problem in answer.json()["detail"]]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"candidates": [{"price": NaN}]}',
        b'{"candidates": [{"price": 1e999}]}',
        b'{"candidates": [{"price": 1' + b"0" * 400 + b"}]}",
        b'{"candidates": [{"user_id": "\\ud800"}]}',
        b'{"candidates": [{"\\ud800": 1}]}',
        b'{"request_id": "\\ud800", "candidates": [{}]}',
        b'{"candidates": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_hostile_json_is_refused_and_never_an_error_of_the_server(server, raw):
    headers = {"content-type": "application/json"}
    assert server.post("/v1/score", content=raw, headers=headers).status_code in (400, 422)
    value = raw.partition(b": ")[2].rpartition(b"}")[0] or raw
    tensor = b'{"inputs": [{"name": "price", "shape": [1], "datatype": "FP64", "data": [%b]}]}'
    for name, kind in ((b"price", b"FP64"), (b"user_id", b"BYTES")):
        data = value.rpartition(b": ")[2].rstrip(b"]}") if b"{" in value else value
        body = (tensor % data).replace(b"price", name).replace(b"FP64", kind)
        answer = server.post("/v2/models/shop/infer", content=body, headers=headers)
        assert answer.status_code in (200, 400, 422), (body, answer.text)


def test_a_body_that_is_too_large_is_refused(server):
    big = b"x" * (MAX_BODY_BYTES + 1)
    assert server.post("/v1/score", content=big).status_code == 413
    chunks = (big[i : i + 65536] for i in range(0, len(big), 65536))  # no content-length
    assert server.post("/v1/score", content=chunks).status_code == 413


def test_a_swap_under_load_fails_no_request_and_rollback_returns(server, applied, shop):
    body = {"context": {"user_id": "load"}, "candidates": [{"item": i} for i in range(5)]}
    stop, answers, lock = threading.Event(), [], threading.Lock()

    def ask() -> None:
        while not stop.is_set():
            answer = server.post("/v1/score", json=body)
            with lock:
                answers.append((answer.status_code, answer.json()))

    def serves(version: str) -> bool:
        return server.get("/v2/models/shop/ready").json()["version"] == version

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    advance(applied, shop, "v000002")
    until(lambda: serves("v000002"))
    LineStore(applied.line_store_url("shop"), "shop").rollback(reason="test")
    until(lambda: serves("v000001"))
    until(lambda: answers[-1][1]["version"] == "v000001")
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert {body["version"] for _, body in answers} == {"v000001", "v000002"}
    scores = {body["version"]: body["scores"][0]["score"] for _, body in answers}
    assert scores["v000001"] != scores["v000002"]
    for _, body in answers:  # never a mix: score and watermark belong to the version told
        assert body["scores"][0]["score"] == scores[body["version"]]
        assert body["watermark"].endswith("40.000+00:00")


def test_a_damaged_version_leaves_the_old_one_serving(server, applied, shop):
    home = applied.line_home("shop")
    version = publish(applied, shop, 5.0, WATERMARK_US)
    stored = next((home / "versions" / version).glob("state*"))
    stored.write_bytes(stored.read_bytes()[:-7])
    advance(applied, shop, version)
    until(lambda: server.app.state.models.fault is not None)
    assert server.post("/v1/score", json={"candidates": [{}]}).json()["version"] == "v000001"
    LineStore(home, "shop").rollback(reason="damaged")
    until(lambda: server.app.state.models.fault is None)
    assert server.post("/v1/score", json={"candidates": [{}]}).status_code == 200


def test_a_second_server_cannot_write_the_same_served_log(server, applied, shop):
    with (
        pytest.raises(EnvironmentFault, match="already writes"),
        TestClient(create_app(applied, shop)),
    ):
        pass


def test_what_was_accepted_is_written_on_stop(applied, shop, tmp_path: Path):
    home = tmp_path / "home"
    settings = replace(applied, home=home)
    (home / "feast").parent.mkdir(parents=True)
    (home / "feast").symlink_to(applied.home / "feast")
    publish(settings, shop, 1.0, WATERMARK_US)
    advance(settings, shop, "v000001")
    with TestClient(create_app(settings, shop)) as client:
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        for i in range(7):
            body = {"request_id": f"q{i}", "candidates": [{}] * 3}
            assert client.post("/v1/score", json=body).status_code == 200
    log = FileLog(settings.line_home("shop") / "log" / "served", served_schema(shop))
    ids = log.read(0, log.head)["impression_id"].to_pylist()
    assert ids == [f"q{i}:{j}" for i in range(7) for j in range(3)]


def test_a_port_in_use_is_named(applied, shop):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentFault, match=f"port {port} .*HEADRACE_SERVER_PORT"):
            run(replace(applied, server_port=port), shop)


def test_a_race_answers_by_entity_logs_its_arms_and_fails_no_request(server, applied, shop):
    lines = LineStore(applied.line_store_url("shop"), "shop")
    champion = lines.champion()
    assert champion is not None
    challenger = publish(applied, shop, 2.0, WATERMARK_US + 5)
    arm = Arm(name="calm", version=challenger, share=0.5)
    race = Race(name="r1", entity="user_id", arms=(arm,)).with_slots(None)

    def ask(user: int, round_: str) -> dict:
        answer = server.post(
            "/v1/score",
            json={
                "request_id": f"race-{round_}-{user}",
                "context": {"user_id": f"u{user}"},
                "candidates": [{"item": 1}, {"item": 2}],
            },
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    races = Races(lines)
    begun = races.append(races.newest(), race, "start", "test")
    until(lambda: (ask(0, "wait"), server.get("/v1/race").json()["race"])[1])
    about = server.get("/v1/race").json()["race"]["arms"]
    assert about == {"calm": {"mode": "split", "version": challenger, "share": 0.5}}
    answers = [ask(user, "run") for user in range(40)]
    told = {(answer["arm"], answer["version"]) for answer in answers}
    assert told == {("champion", champion.version), ("calm", challenger)}
    assert [ask(user, "again")["arm"] for user in range(40)] == [a["arm"] for a in answers]
    until(lambda: len(served_rows(applied, shop, "race-again-39")) == 2)
    for user in (0, 39):
        (row, _) = served_rows(applied, shop, f"race-run-{user}")
        said = answers[user]
        assert (row["arm"], row["version"]) == (said["arm"], said["version"])
        assert row["propensity"] == 0.5
    races.append(begun, None, "stop", "test")
    until(lambda: ask(1, "stop") and server.get("/v1/race").json()["race"] is None)
    assert {ask(user, "end")["arm"] for user in range(20)} == {"champion"}
