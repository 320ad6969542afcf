"""The server that a team writes with KServe's SDK: a custom model, features through Feast's SDK.

`python -m bench._kserve PORT`, from an environment that holds KServe, with the environment
variables of `headrace serve`. `v1/models/features:predict` takes candidates and reads their
features; `v1/models/vectors:predict` takes ready vectors. Nothing is logged or followed.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import pyarrow as pa
from feast import FeatureStore
from kserve import Model as ServedModel
from kserve import ModelServer

from bench._bare import LINE
from headrace.declaration import LineSpec
from headrace.events import input_fields
from headrace.feature_rows import request_fields
from headrace.line import LineStore
from headrace.model import Model
from headrace.settings import Settings, find_line, load_settings
from headrace.store.config import open_config


class Vectors(ServedModel):  # type: ignore[misc]
    """Scores of ready vectors: `instances` are rows, an object of inputs by name each."""

    def __init__(self, settings: Settings, spec: LineSpec, name: str = "vectors") -> None:
        super().__init__(name)
        store = LineStore(settings.line_store_url(LINE), LINE)
        champion = store.champion()
        assert champion is not None
        self._model = Model(spec.model, spec.seed)
        self._model.load_state(store.load(champion.version)[1])
        self._fields = input_fields(spec)
        self.ready = True

    def predict(self, payload: dict[str, Any], _headers: Any = None) -> dict[str, Any]:
        """`predictions`, one a row."""
        rows = payload["instances"]
        return self.scored({each.name: [row[each.name] for row in rows] for each in self._fields})

    def scored(self, columns: dict[str, list[Any]]) -> dict[str, Any]:
        """The answer for inputs by name."""
        inputs = {each.name: pa.array(columns[each.name], each.type) for each in self._fields}
        return {"predictions": self._model.predict(pa.table(inputs)).tolist()}


class Features(Vectors):
    """Scores of candidates, whose features Feast reads and computes: rows as `/v1/score` has."""

    def __init__(self, settings: Settings, spec: LineSpec) -> None:
        super().__init__(settings, spec, "features")
        self._feast = FeatureStore(config=open_config(settings))
        self._service = self._feast.get_feature_service(spec.feature_service)
        suffix = "__request"  # Feast wants a column that is a key and an input under two names
        fields = [name for name in request_fields(spec) if name.endswith(suffix)]
        self._sent = {name: name.removesuffix(suffix) for name in fields}

    def predict(self, payload: dict[str, Any], _headers: Any = None) -> dict[str, Any]:
        """`predictions`, one a row."""
        at = {"request_at": time.time_ns() // 1_000}
        rows = [
            row | at | {sent: row[name] for sent, name in self._sent.items()}
            for row in payload["instances"]
        ]
        return self.scored(self._feast.get_online_features(self._service, rows).to_dict())


if __name__ == "__main__":
    _settings = load_settings()
    _spec = find_line(_settings, LINE)
    ModelServer(http_port=int(sys.argv[1]), enable_grpc=False).start(
        [Vectors(_settings, _spec), Features(_settings, _spec)]
    )
