"""What a mistake looks like at the command line: one clear line, its exit code, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from headrace.quarantine import Quarantine
from tests.contract.command_line import Place


def test_a_wrong_pipeline_is_named(place: Place) -> None:
    words = ["'train'", "incremental_train or full_train"]
    place.refuses(2, words, "run", "train", "--line", "toy")


def test_an_unknown_version_is_named(place: Place) -> None:
    place.refuses(3, ["'v9'", "'toy'", "known: none"], "line", "show", "v9", "--line", "toy")
    place.store(versions=2)
    known = ["'v9'", "known: v000001, v000002"]
    place.refuses(3, known, "line", "show", "v9", "--line", "toy")
    place.refuses(3, known, "line", "promote", "v9", "--line", "toy")
    refused = ["v000001", "no passed verdict"]
    place.refuses(7, refused, "line", "promote", "v000001", "--line", "toy")


def test_a_rollback_to_nothing_is_named(place: Place) -> None:
    place.refuses(3, ["no champion yet", "promote"], "line", "rollback", "--line", "toy")
    store = place.store(versions=2, champions=1)
    words = ["no champion but 'v000001'", "name a version"]
    place.refuses(3, words, "line", "rollback", "--line", "toy")
    place.refuses(3, ["'v9'", "known:"], "line", "rollback", "--to", "v9", "--line", "toy")
    assert len(store.history()) == 1


def test_a_version_is_promoted_by_force_compared_verified_and_pinned(place: Place) -> None:
    store = place.store(versions=3, champions=1)
    forced = place.headrace("line", "promote", "v000003", "--force", "--json", "--line", "toy")
    assert json.loads(forced.out)["action"] == "force"
    back = place.headrace("line", "rollback", "--json", "--line", "toy")
    assert json.loads(back.out)["version"] == "v000001"
    told = json.loads(
        place.headrace("line", "diff", "v000001", "v000003", "--json", "--line", "toy").out
    )
    assert told["arrays"] == {"w": {"rows": 1, "of": 1}}
    shown = place.headrace("line", "diff", "v000001", "v000003", "--line", "toy")
    assert "w: 1 of 1 rows differ" in shown.out
    assert place.headrace("line", "pin", "v000002", "--line", "toy").code == 0
    assert store.files.exists("versions/v000002/pin.json")
    assert place.headrace("line", "unpin", "v000002", "--line", "toy").code == 0
    assert not store.files.exists("versions/v000002/pin.json")
    done = json.loads(place.headrace("line", "upkeep", "--once", "--line", "toy").out)
    assert done["compacted"] is None
    listed = json.loads(place.headrace("line", "list", "--json", "--line", "toy").out)
    assert [version["pruned"] for version in listed["versions"]] == [False] * 3
    assert "3 versions hold" in place.headrace("line", "verify", "--line", "toy").out


def test_a_damaged_version_is_named_by_verify(place: Place) -> None:
    store = place.store(versions=2)
    store.files.replace("versions/v000002/state.safetensors.zst", b"torn")
    words = ["1 of 2 versions are damaged", "v000002", "SHA-256"]
    place.refuses(6, words, "line", "verify", "--line", "toy")
    told = json.loads(place.headrace("line", "verify", "--json", "--line", "toy").out)
    assert [each["outcome"] for each in told] == ["sound", "damaged"]


def test_a_near_miss_of_a_version_is_answered_with_its_neighbours(place: Place) -> None:
    place.store(versions=2)
    place.refuses(
        3, ["'v000003'", "did you mean"], "line", "diff", "v000001", "v000003", "--line", "toy"
    )


def test_an_unknown_window_cannot_be_released(place: Place) -> None:
    Quarantine(place.home / "lines" / "toy").add(3, 5, ["why"])
    verb = ("quarantine", "release")
    place.refuses(3, ["4-5", "no such interval", "3-5"], *verb, "4-5", "--line", "toy")
    for wrong in ("five", "3", "3-", "²-5"):
        place.refuses(2, [f"'{wrong}'", "FROM-TO"], *verb, wrong, "--line", "toy")
    assert place.headrace(*verb, "3-5", "--line", "toy").code == 0


def test_a_wrong_verb_or_option_is_named(place: Place) -> None:
    place.refuses(2, ["'candle'", "headrace --help"], "candle")
    place.refuses(2, ["--candle", "headrace --help"], "lines", "--candle")
    ended = place.headrace("line")
    assert ended.code == 2
    assert ended.err.startswith("Usage: ")


@pytest.mark.parametrize(("raised", "code"), [(typer.Exit(1), 1), (KeyboardInterrupt(), 130)])
def test_the_exit_code_of_a_verb_is_that_of_the_command(
    place: Place, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    def fail(_folder: Path) -> None:
        raise raised

    monkeypatch.setattr("headrace.cli.declared.load_lines", fail)
    assert place.headrace("lines").code == code
