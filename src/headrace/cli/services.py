"""Verbs that go on until they are stopped: a stack runs one process of each."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from headrace.cli.options import LineName, open_line, until_signal


def ingest(line: LineName = "coupons") -> None:
    """Collect events over HTTP and turn them into features and samples, tick by tick."""
    from headrace.ingest.service import run

    settings, spec = open_line(line)
    until_signal(lambda stop: run(settings, spec, stop))


def serve(line: LineName = "coupons") -> None:
    """Answer scoring requests with the line's champion, swapping versions while serving."""
    from headrace.serving.app import run

    settings, spec = open_line(line)
    run(settings, spec)


def learn(line: LineName = "coupons") -> None:
    """Learn new samples each second or few and promote what the gates pass, until stopped."""
    from headrace.learner import run

    settings, spec = open_line(line)
    until_signal(lambda stop: run(settings, spec, stop))


def simulate(
    line: LineName = "coupons",
    minutes: Annotated[float, typer.Option(help="How long; 0 is until stopped.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the simulated world.")] = 7,
) -> None:
    """Send a simulated coupon campaign to the running stack, closing the loop."""
    from headrace.simulate.campaign import SimulatorConfig
    from headrace.simulate.campaign import run as simulate_run

    settings, spec = open_line(line)

    def limited(stop: threading.Event) -> None:
        if minutes > 0:
            threading.Timer(minutes * 60, stop.set).start()
        simulate_run(settings, spec, SimulatorConfig(seed=seed), stop)

    until_signal(limited)
