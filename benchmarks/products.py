"""How fast this machine multiplies matrices: the limit that every contender shares."""

from __future__ import annotations

import numpy as np

from .task import Case, Contender, Run

#: Rows, inner size and columns of the product, the shape of an MLP's first layer.
ROWS, INNER, COLUMNS = 1024, 768, 3072

#: Multiplications and additions of one run.
OPERATIONS = 2 * ROWS * INNER * COLUMNS


class Products:
    """A float32 product of NumPy's BLAS, on as many threads as the others have."""

    def __init__(self, _: Contender) -> None:
        random = np.random.default_rng(0)
        self._a = random.normal(size=(ROWS, INNER)).astype(np.float32)
        self._b = random.normal(size=(INNER, COLUMNS)).astype(np.float32)

    def prepare(self, case: Case) -> Run:  # noqa: ARG002 (it is the same beside each)
        return lambda: self._a @ self._b
