"""The least that a server of the same model can be: FastAPI, ready vectors in, scores out.

`python -m bench._bare PORT` with the environment of `headrace serve`: nothing is looked up,
computed, logged or followed.
"""

from __future__ import annotations

import sys

import pyarrow as pa
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from headrace.events import input_fields
from headrace.line import LineStore
from headrace.model import Model
from headrace.settings import find_line, load_settings

LINE = "bench"


class Vectors(BaseModel):
    """Ids and numbers by row."""

    ids: list[list[int]]
    numbers: list[list[float | None]]


def create_app() -> FastAPI:
    """The champion of the line, loaded once."""
    settings = load_settings()
    spec = find_line(settings, LINE)
    store = LineStore(settings.line_store_url(LINE), LINE)
    champion = store.champion()
    assert champion is not None
    model = Model(spec.model, spec.seed)
    model.load_state(store.load(champion.version)[1])
    kinds = {field.name: field.type for field in input_fields(spec)}
    app = FastAPI()

    @app.post("/predict")
    def predict(vectors: Vectors) -> dict[str, list[float]]:
        """Scores of the vectors."""
        columns = {}
        for names, rows in (
            (spec.model.categorical, vectors.ids),
            (spec.model.numeric, vectors.numbers),
        ):
            for name, values in zip(names, zip(*rows, strict=True), strict=True):
                columns[name] = pa.array(values, kinds[name], from_pandas=True)
        return {"scores": model.predict(pa.table(columns)).tolist()}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), port=int(sys.argv[1]), log_level="warning", access_log=False)
