"""Labels that people corrected: the case book of a line, and the sheets that they fill in."""

from headrace.cases.book import Batch, CaseBook, among, as_learned, relabelled
from headrace.cases.judge import WEIGHT, Taken, take

__all__ = ["WEIGHT", "Batch", "CaseBook", "Taken", "among", "as_learned", "relabelled", "take"]
