"""`headrace chaos`: does the stack survive the loss of its processes?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import AsJson, LineName, open_line, out, show


def chaos(
    *,
    kills: Annotated[int, typer.Option(min=1, help="How many services to kill.")] = 10,
    seed: Annotated[int, typer.Option(help="Chooses victims and moments.")] = 0,
    apart: Annotated[float, typer.Option(min=0, help="Most seconds between two kills.")] = 5.0,
    line: LineName = "coupons",
    result: Annotated[
        Path | None, typer.Option("--out", help="Write the JSON here too, such as in out/faults.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Kill services of the running stack by SIGKILL; exit 6 when an event was lost by it."""
    from headrace import chaos as flow
    from headrace.atomic import write_json
    from headrace.errors import IntegrityError

    settings, spec = open_line(line)
    say = (lambda _text: None) if as_json else out.print
    found = flow.run(settings, spec.line, kills, seed=seed, apart_s=apart, say=say)
    if result is not None:
        write_json(result, found)
    if as_json:
        show(found)
    if found["lost"] or found["duplicated"]:
        raise IntegrityError(
            f"{spec.line}: {found['lost']} events lost, {found['duplicated']} duplicated; see "
            "`headrace account`"
        )
    if not as_json:
        took = found["recovered_s"]
        out.print(
            f"{found['kills']} kills, healthy again after {took['median']:.1f} s (median), "
            f"{took['max']:.1f} s (most); no event lost or duplicated"
        )
