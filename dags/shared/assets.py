"""The assets of a line: events, features, samples, version, served; scores are made beside them.

The resident services write the first three all the time and tell Airflow nothing; DAGs read them
(inlets). A version is published by a training, `served` moves when the champion does, and a batch
writes `scores`, those of many rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from airflow.sdk import Asset


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
    def of(cls, line: str) -> Self:
        """The assets named `<line>.<asset>`, with the URI `headrace://<line>/<asset>`."""
        names = ("events", "features", "samples", "version", "served", "scores")
        uris = {f"{line}.{name}": f"headrace://{line}/{name}" for name in names}
        return cls(*(Asset(name, uri=uri, group="headrace") for name, uri in uris.items()))
