"""Several real processes that learn one full training together, and one of them killed."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace import passes
from headrace.atomic import write_arrow
from headrace.declaration import ModelSpec
from headrace.errors import InputError
from headrace.metrics import auc
from headrace.model import Model
from headrace.model.delta import State, same_bits
from headrace.passes import Point
from headrace.past import Rows
from headrace.workers import Job, learn

BLOCKS, BATCHES, SEED = 6, 5, 5


def spec_of(family: str) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "family": family,
            "categorical": ["user", "item"],
            "numeric": ["rate"],
            "epochs": 2,
            "table_bits": 10,
            "batch_size": 100,
        }
    )


def samples(rows: int, seed: int) -> pa.Table:
    draw = np.random.default_rng(seed)
    users, items = draw.integers(0, 50, rows), draw.integers(0, 20, rows)
    rate = draw.normal(size=rows)
    logit = np.sin(users) + np.cos(3 * items) + rate - 1
    clicked = (draw.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    return pa.table(
        {
            "user": users,
            "item": items,
            "rate": rate,
            "positive_weight": clicked,
            "negative_weight": 1 - clicked,
        }
    )


def job(spec: ModelSpec, folder: Path) -> Job:
    """A job whose last batch is short, with a checkpoint after every block."""
    (folder / "rows").mkdir(parents=True)
    every = BATCHES * spec.batch_size
    table = samples(BLOCKS * every - 33, seed=1)
    for place in range(BLOCKS):
        block = table.slice(place * every, every).combine_chunks()
        write_arrow(folder / "rows" / f"{place:08d}.arrow", block)
    return Job(spec, SEED, False, folder, folder / "checkpoint.safetensors", checkpoint_s=0)


def alone(spec: ModelSpec, folder: Path) -> State:
    model = Model(spec, SEED)
    passes.learn(model, Rows(folder / "rows"), spec.epochs)
    return model.state()


@pytest.mark.faults
def test_a_killed_worker_changes_no_byte_of_what_three_learn(tmp_path: Path) -> None:
    spec = spec_of("ftrl_deep")
    undisturbed = job(spec, tmp_path / "undisturbed")
    ended, state = learn(undisturbed, 3)
    assert (ended.epoch, ended.rows) == (2, BLOCKS * BATCHES * 100 - 33)

    disturbed, killed = job(spec, tmp_path / "disturbed"), []

    def kill_in_the_second_epoch(point: Point, blocks: int) -> None:
        if point.epoch == 1 and point.block == blocks // 2 and not killed:
            pids = json.loads((disturbed.folder / "workers.json").read_text())["pids"]
            killed.append(pids[1])
            os.kill(pids[1], signal.SIGKILL)

    again, recovered = learn(disturbed, 3, kill_in_the_second_epoch)
    assert killed
    assert again == ended
    assert same_bits(recovered, state)

    one = alone(spec, undisturbed.folder)
    for name, array in one.items():
        np.testing.assert_allclose(state[name], array, rtol=1e-3, atol=1e-4, err_msg=name)
    later = samples(5_000, seed=2)
    answers = []
    for each in (one, state):
        model = Model(spec, SEED)
        model.load_state(each)
        answers.append(model.predict(later))
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-4)
    clicked = later["positive_weight"].to_numpy()
    assert auc(clicked, answers[1]) == pytest.approx(auc(clicked, answers[0]), abs=1e-4)


@pytest.mark.e2e
def test_without_a_network_two_workers_give_the_bytes_of_one(tmp_path: Path) -> None:
    spec = spec_of("ftrl")
    together = job(spec, tmp_path / "job")
    _, state = learn(together, 2)
    assert same_bits(state, alone(spec, together.folder))


@pytest.mark.e2e
def test_a_mistake_in_the_rows_is_named_and_not_tried_again(tmp_path: Path) -> None:
    wrong = job(spec_of("ftrl"), tmp_path / "job")
    block = samples(100, seed=3).set_column(2, "rate", pa.array([np.inf] * 100))
    write_arrow(wrong.rows / "00000000.arrow", block)
    lives = []
    with pytest.raises(InputError, match="rate: inf in row 0"):
        learn(replace(wrong, checkpoint_s=60), 2, lambda point, _: lives.append(point))
    assert lives == []
