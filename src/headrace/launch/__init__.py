"""Run a compiled Kubeflow pipeline for a line: here by `kfp.local`, or on a cluster by URL."""

from headrace.launch.run import RunResult, run_pipeline

__all__ = ["RunResult", "run_pipeline"]
