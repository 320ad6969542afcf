"""The resident learner: the cycle's steps in one process, a step each second or few.

A step reads the samples of new ticks and puts them through the data gate. They first test: the
candidate, which has not learned them, is compared on them with the champion, and the same gates
as in a cycle decide whether it is promoted. Then they train: learned on top of the champion they
make the next candidate, which is published as a delta and waits for the rows that come next.
So every candidate is judged on rows that arrived after everything it learned (docs/adr/0022).
"""

from headrace.learner.service import run
from headrace.learner.standing import Models
from headrace.learner.steps import Learner

__all__ = ["Learner", "Models", "run"]
