"""Speed of a bundle beside its peers, which a user may choose instead: ``fgclip-rt bench`` and ``make bench``.

Every contender runs in a process of its own, so that contenders share neither threads nor memory. They take turns, so
that other work of the machine falls on all of them alike. All figures of a table come from one run.
"""

from .advice import advise
from .bench import bench

__all__ = ["advise", "bench"]
