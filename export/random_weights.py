"""Random weights, for benchmarks at real size with no download.

Nothing here knows anything: vectors are arbitrary, but every operator does the work that it would do with real
weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill a reference from a seeded generator, but for its logit scales and biases.

    The gains keep activations near one, and attention far enough from uniform that vectors differ between inputs:
    otherwise parity would be easy to reach by mistake.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float) -> None:
        tensor.normal_(0.0, std, generator=generator)

    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            normal(module.bias, 0.02)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            gain = 1.5 if name.endswith(("q_proj", "k_proj")) else 1.0
            normal(module.weight, gain * module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                normal(module.bias, 0.02)
        elif isinstance(module, nn.MultiheadAttention):
            normal(module.in_proj_weight, 1.5 * module.embed_dim**-0.5)
            normal(module.in_proj_bias, 0.02)
        elif isinstance(module, nn.Embedding):
            normal(module.weight, 0.3 if "position" in name else 1.0)
        else:
            for own, parameter in module.named_parameters(recurse=False):
                if not own.startswith("logit_"):
                    normal(parameter, _std(own, parameter))


def _std(name: str, parameter: Tensor) -> float:
    """Of a parameter that a module has by itself."""
    if name.endswith("bias"):
        return 0.02
    if name.startswith("pos"):
        return 0.3
    return float(len(parameter)) ** -0.5 if parameter.ndim == 2 else 1.0
