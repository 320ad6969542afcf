"""What the processes of a group have to know, as a file beside the rows that they learn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.atomic import write_json
from headrace.declaration import ModelSpec

CHECKPOINT_S: Final = 60.0
LOST: Final = 75
"""Exit code of a worker and a group (EX_TEMPFAIL): start all again."""
_JOB: Final = "job.json"


@dataclass(frozen=True)
class Job:
    """A training: the model, its seed, whether it has a second task (see `model`), a folder
    (`rows/` inside), where the checkpoint is.

    `checkpoint_s` is the time between two checkpoints: what a death costs at most, beside a
    start. It changes no byte of the result.
    """

    model: ModelSpec
    seed: int
    conversion: bool
    folder: Path
    checkpoint: Path
    checkpoint_s: float = CHECKPOINT_S

    @property
    def rows(self) -> Path:
        return self.folder / "rows"

    def write(self) -> None:
        """Write it into its folder."""
        body = {
            "model": self.model.model_dump(mode="json"),
            "seed": self.seed,
            "conversion": self.conversion,
            "checkpoint": str(self.checkpoint),
            "checkpoint_s": self.checkpoint_s,
        }
        write_json(self.folder / _JOB, body)

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job of a folder."""
        body = json.loads((folder / _JOB).read_text(encoding="utf-8"))
        return cls(
            ModelSpec.model_validate(body["model"]),
            body["seed"],
            body["conversion"],
            folder,
            Path(body["checkpoint"]),
            body["checkpoint_s"],
        )
