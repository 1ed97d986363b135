"""Rate of this machine's matrix products: the limit that every contender shares."""

from __future__ import annotations

import numpy as np

from fgclip_rt.arrays import Array

from .task import Case, Clocked, Contender, Device, Run

#: Rows, inner size and columns of the product, the shape of an MLP's first layer.
ROWS, INNER, COLUMNS = 1024, 768, 3072

#: Multiplications and additions of one run.
OPERATIONS = 2 * ROWS * INNER * COLUMNS

#: Rows, inner size and columns of the product on a GPU, which a smaller product would not fill.
_SIDE = 8192


def operations(device: Device) -> int:
    """Multiplications and additions of the product that is measured on a device."""
    return OPERATIONS if device == "cpu" else 2 * _SIDE**3


class Products:
    """A float32 product of NumPy's BLAS, on as many threads as the others have."""

    def __init__(self, _: Contender) -> None:
        random = np.random.default_rng(0)
        self._a = random.normal(size=(ROWS, INNER)).astype(np.float32)
        self._b = random.normal(size=(INNER, COLUMNS)).astype(np.float32)

    def prepare(self, case: Case) -> Run:  # noqa: ARG002 (one product for every case)
        return lambda: self._a @ self._b


class GpuProducts:
    """A float16 product of random numbers by PyTorch on a GPU."""

    def __init__(self, contender: Contender) -> None:
        import torch

        self._a, self._b = (torch.randn(_SIDE, _SIDE, device=contender.device, dtype=torch.float16) for _ in range(2))

    def prepare(self, case: Case) -> Run:  # noqa: ARG002 (one product for every case)
        from .events import between_events

        def compute() -> Array:
            row: Array = (self._a @ self._b)[0].float().cpu().numpy()
            return row

        return Clocked(compute, between_events(lambda: self._a @ self._b))
