"""The reference in float64, as a measure of float32 itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

#: Reads rows of a table, which need not be converted as a whole.
_LOOKUP = torch.ops.aten.embedding.default


class Float64(TorchDispatchMode):
    """Within this context, PyTorch computes in float64 wherever the code asks for float32.

    A weight is converted when an operator reads it, and the copy is freed with the operator. So the memory stays near
    that of float32: one layer is in float64 at a time.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        del types
        if func is _LOOKUP or func.is_view:
            # Values are converted by the operator that computes with them.
            return func(*args, **(kwargs or {}))
        return func(*tree_map(_widened, args), **tree_map(_widened, dict(kwargs or {})))


def _widened(value: Any) -> Any:
    """A float32 tensor, or the type float32 itself, in float64; all else as it is."""
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.to(torch.float64)
    return torch.float64 if value is torch.float32 else value
