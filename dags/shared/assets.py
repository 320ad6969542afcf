"""The assets of a line: events, features, samples, version, served; scores are made beside them.

The resident services write the first three all the time and tell Airflow nothing; DAGs read them
(inlets). Where the line says `cadence.on_samples`, a watcher tells Airflow when so many wait to
be learned. A version is published by a training, `served` moves when the champion does, and a
batch writes `scores`, those of many rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from airflow.sdk import Asset, AssetWatcher

from headrace.declaration import LineSpec


@dataclass(frozen=True)
class LineAssets:
    """The assets of one line, upstream first."""

    events: Asset
    features: Asset
    samples: Asset
    version: Asset
    served: Asset
    scores: Asset

    @classmethod
    def of(cls, spec: LineSpec) -> Self:
        """The assets named `<line>.<asset>`, with the URI `headrace://<line>/<asset>`.

        The same in every DAG file: Airflow takes a watcher away that another file leaves out.
        """

        def made(name: str, watchers: list[AssetWatcher]) -> Asset:
            where = f"headrace://{spec.line}/{name}"
            return Asset(f"{spec.line}.{name}", uri=where, group="headrace", watchers=watchers)

        names = ("events", "features", "samples", "version", "served", "scores")
        return cls(*(made(name, _watchers(spec) if name == "samples" else []) for name in names))


def _watchers(spec: LineSpec) -> list[AssetWatcher]:
    if spec.cadence.on_samples is None:
        return []
    from dags.shared.arriving import SamplesWait  # only then the parser needs Airflow's triggers

    return [AssetWatcher(f"{spec.line}_samples", SamplesWait(spec.line, spec.cadence.on_samples))]
