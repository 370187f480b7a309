"""Does a store keep all that a cluster needs of it?"""

from .examination import Check, Examination, Outcome, examine, examine_store
from .promises import PROMISES, Promise

__all__ = ["PROMISES", "Check", "Examination", "Outcome", "Promise", "examine", "examine_store"]
