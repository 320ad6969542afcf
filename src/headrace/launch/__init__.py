"""Run a compiled Kubeflow pipeline for a line: here by `kfp.local`, or on a cluster by URL."""

from headrace.launch.run import RunResult, run_pipeline
from headrace.launch.scores import ScoresResult, holds_events, run_batch_score

__all__ = ["RunResult", "ScoresResult", "holds_events", "run_batch_score", "run_pipeline"]
