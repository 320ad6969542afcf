"""Run a compiled Kubeflow pipeline for a line: here by `kfp.local`, or on a cluster by URL."""

from headrace.launch.errands import ErrandResult, holds_events, run_errand
from headrace.launch.run import RunResult, run_pipeline

__all__ = ["ErrandResult", "RunResult", "holds_events", "run_errand", "run_pipeline"]
