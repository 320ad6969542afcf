"""TF_CONFIG: how a process of a group learns its place."""

from __future__ import annotations

import json

import pytest

from headrace.errors import DeclarationError
from headrace.settings import Cluster, load_settings


def told(cluster: dict[str, list[str]], kind: str, index: int) -> Cluster | None:
    task = {"type": kind, "index": index}
    return load_settings({"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}).cluster


def test_a_chief_comes_before_the_workers_and_others_do_not_count() -> None:
    group = {"chief": ["a:1"], "worker": ["b:2", "c:3"], "evaluator": ["d:4"]}
    assert told(group, "chief", 0) == Cluster(("a:1", "b:2", "c:3"), 0)
    assert told(group, "worker", 1) == Cluster(("a:1", "b:2", "c:3"), 2)


def test_a_worker_alone_and_no_word_mean_no_group() -> None:
    assert told({"worker": ["a:1"]}, "worker", 0) is None
    assert load_settings({}).cluster is None


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'],
)
def test_a_word_that_names_no_worker_is_refused(text: str) -> None:
    with pytest.raises(DeclarationError, match="names no worker of a group"):
        load_settings({"TF_CONFIG": text})
