"""Jobs over millions of images: one shard after another to files of vectors, each done or not begun.

>>> from fgclip_rt.shards import find_shards, make_job, open_store, embed_shard
>>> store = open_store("vectors.shards")
>>> store.claim(job := make_job(model.bundle, model.precision))
>>> for shard in find_shards(["photos"], 10_000):
...     embed_shard(model, job, shard, store)
"""

from .embedding import embed_shard
from .inputs import find_shards
from .job import Columns, Job, Marker, Shard, make_job
from .storage import Store, open_store

__all__ = ["Columns", "Job", "Marker", "Shard", "Store", "embed_shard", "find_shards", "make_job", "open_store"]
