"""Run every benchmark of this folder, or those named: `python -m bench [windows …] [--quick]`."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
OUT = HERE.parent / "out" / "bench"
ALONE = {"soak"}
"""Those that run only by name, for their length."""


def main() -> None:
    """Write one JSON a benchmark and print its claims."""
    names = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="a smoke run on little data")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the soak lasts")
    options = parser.parse_args()
    unknown = set(options.names) - set(names)
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)[0]!r}; there are: {', '.join(names)}")
    OUT.mkdir(parents=True, exist_ok=True)
    table = Table("benchmark", "claim", "value", "goal", "holds")
    for name in options.names or [name for name in names if name not in ALONE]:
        more = {"minutes": options.minutes} if name == "soak" else {}
        result = importlib.import_module(f"bench.{name}").run(quick=options.quick, **more)
        (OUT / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        for claim in result["claims"]:
            table.add_row(
                name,
                claim["name"],
                f"{claim['value']:.3g} {claim['unit']}",
                str(claim["goal"]),
                "yes" if claim["holds"] else "NO",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
