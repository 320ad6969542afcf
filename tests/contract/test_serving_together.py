"""Requests that wait at the same moment: scored together, told apart, and as if each were alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fastapi import FastAPI

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, InputError
from headrace.line import LineStore
from headrace.line.races import Races
from headrace.race.arms import Arm, Race
from headrace.raw import Candidates
from headrace.serving import together
from headrace.serving.app import create_app
from headrace.serving.payload import candidates_of, score_request
from headrace.serving.scored import Scored
from headrace.serving.scorer import Asked, Scorer
from headrace.serving.together import Together
from headrace.settings import Settings
from tests.contract.test_serving import TestClient
from tests.serving import WATERMARK_US, advance, publish, served_rows, until


@pytest.fixture(scope="module")
def app(applied: Settings, shop: LineSpec) -> Iterator[FastAPI]:
    with TestClient(create_app(applied, shop)) as client:
        for bias in (1.0, 3.0):
            publish(applied, shop, bias, WATERMARK_US)
        advance(applied, shop, "v000001")
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        yield client.app


def question(spec: LineSpec, name: str, size: int) -> Asked:
    rows = [{"item": row, "price": row / 3} for row in range(size)]
    body = score_request(spec).model_validate({"context": {"user_id": name}, "candidates": rows})
    return Asked(name, candidates_of(spec, body))


def answers(scorer: Scorer, asked: Sequence[Asked]) -> list[Scored]:
    found = scorer.score_together(asked)
    assert all(isinstance(each, Scored) for each in found), found
    return found  # type: ignore[return-value]


def test_together_each_is_answered_as_if_it_were_alone(app, applied, shop):
    scorer = app.state.scorer
    asked = [question(shop, f"user {size}", size) for size in (1, 70, 3)]
    for found, each in zip(answers(scorer, asked), asked, strict=True):
        alone = scorer.score(each.request_id, each.candidates)
        assert found.scores.tobytes() == alone.scores.tobytes()
        assert (found.request_id, found.version) == (each.request_id, "v000001")
        assert found.impression_ids == alone.impression_ids
        until(
            lambda each=each: (
                len(served_rows(applied, shop, each.request_id)) == 2 * each.candidates.num_rows
            )
        )
        logged = served_rows(applied, shop, each.request_id)
        assert [row["score"] for row in logged] == 2 * found.scores.tolist()
        assert {row["user_id"] for row in logged} == {each.request_id}


def test_together_each_is_answered_by_the_arm_that_it_drew(app, applied, shop):
    races = Races(LineStore(applied.line_store_url("shop"), "shop"))
    arm = Arm(name="other", version="v000002", share=0.5)
    race = Race(name="r", entity="user_id", arms=(arm,)).with_slots(None)
    raced = races.append(None, race, "start", "test")
    until(lambda: app.state.arms.about() is not None)
    try:
        asked = [question(shop, f"user {number}", 5) for number in range(12)]
        found = answers(app.state.scorer, asked)
    finally:
        races.append(raced, None, "stop", "test")
        until(lambda: app.state.arms.about() is None)
    versions = {"champion": "v000001", "other": "v000002"}
    assert {each.arm for each in found} == set(versions)
    for each, its in zip(found, asked, strict=True):
        assert each.version == versions[each.arm]
        alone = app.state.scorer.score("alone", its.candidates, each.version)
        assert each.scores.tobytes() == alone.scores.tobytes()


def test_one_that_cannot_be_logged_fails_no_other(app, shop, monkeypatch):
    put = app.state.served.put

    def refuse(rows: Any) -> None:
        if rows.scored.request_id == "full":
            raise EnvironmentFault("no room")
        put(rows)

    monkeypatch.setattr(app.state.served, "put", refuse)
    asked = [question(shop, name, 2) for name in ("first", "full", "last")]
    first, full, last = app.state.scorer.score_together(asked)
    assert (first.request_id, last.request_id) == ("first", "last")
    assert str(full) == "no room"


def test_one_that_breaks_them_all_is_found_by_scoring_each(app, shop, caplog):
    odd = Asked("odd", Candidates({"user_id": ["odd"] * 2}, 2))
    asked = [question(shop, "a", 2), odd, question(shop, "b", 2)]
    first, problem, last = app.state.scorer.score_together(asked)
    assert isinstance(problem, Exception)
    assert (first.request_id, last.request_id) == ("a", "b")
    assert "one by one" in caplog.text


class Counting:
    """A scorer that tells who came with whom."""

    def __init__(self) -> None:
        self.turns: list[list[str]] = []

    def score_together(self, asked: Sequence[Asked]) -> list[Any]:
        self.turns.append([each.request_id for each in asked])
        return [
            InputError("bad") if each.request_id == "bad" else each.request_id for each in asked
        ]


def test_a_turn_takes_who_waits_up_to_its_rows_and_tells_each_his_own(monkeypatch):
    monkeypatch.setattr(together, "MOST_ROWS", 10)
    scorer = Counting()

    async def ask() -> list[Any]:
        line = Together(scorer)  # type: ignore[arg-type]

        def each(name: str, rows: int) -> Any:
            return line.score(Asked(name, Candidates({}, rows)))

        gone = asyncio.create_task(each("gone", 1))
        rest = [asyncio.create_task(each(n, r)) for n, r in (("a", 4), ("bad", 5), ("large", 99))]
        await asyncio.sleep(0)
        gone.cancel()
        found = await asyncio.gather(*rest, return_exceptions=True)
        return [*found, await each("later", 1)]

    a, bad, large, later = asyncio.run(ask())
    assert (a, large, later) == ("a", "large", "later")
    assert isinstance(bad, InputError)
    assert scorer.turns == [["gone", "a", "bad"], ["large"], ["later"]]
