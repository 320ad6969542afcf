"""Evidence in, verdict out: the claims that a candidate must prove before it may serve."""

from headrace.gates.evidence import PRIOR, Evidence, TaskEvidence
from headrace.gates.judge import Verdict, judge, judge_step

__all__ = ["PRIOR", "Evidence", "TaskEvidence", "Verdict", "judge", "judge_step"]
