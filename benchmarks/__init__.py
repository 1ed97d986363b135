"""How fast a bundle is, beside what a user would pick instead: ``fgclip-rt bench`` and ``make bench``.

Every contender runs in a process of its own, so that neither its threads nor its memory are another's, and they take
turns, so that what else the machine does falls on all of them alike. A table's figures come from one run.
"""

from .advice import advise
from .bench import bench

__all__ = ["advise", "bench"]
