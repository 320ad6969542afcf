"""A race on a line: started, kept fresh, judged on the same rows, acted upon; see `conduct`."""

from headrace.contest.conduct import Contest
from headrace.contest.conductor import beat, run
from headrace.contest.entry import make_arm, make_race, variant
from headrace.contest.look import Look

__all__ = ["Contest", "Look", "beat", "make_arm", "make_race", "run", "variant"]
