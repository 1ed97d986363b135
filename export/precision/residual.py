"""Blocks whose residual stream may be in float16: those in which it stays far from the type's end.

In float16 the product before a sum takes bias and sum into its own kernel, and the next norm reads half the memory. But
some checkpoints have a stream that passes 65,504, so the largest values decide, block by block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fgclip_rt.manifest import Span

from .layers import Layer, block_of

#: The largest value that a block's stream may have on the observed inputs: a fourth of float16's largest, for others.
LARGEST = 16_000


def calm_blocks(residuals: Iterable[Layer], peaks: Mapping[str, float]) -> list[str]:
    """The blocks whose sums all stay under :data:`LARGEST`, in order.

    Args:
        residuals: sums with the residual stream, of all graphs.
        peaks: the largest magnitude that each sum read or wrote, by its name.
    """
    calm: dict[str, bool] = {}
    for residual in residuals:
        block = block_of(residual)
        # Not a number is not under it either.
        calm[block] = calm.get(block, True) and peaks[residual.name] < LARGEST
    return [block for block, is_calm in calm.items() if is_calm]


def spans(blocks: Sequence[str], chosen: Iterable[str]) -> tuple[Span, ...]:
    """The chosen ones of all ``blocks``, which are in order, as spans within each tower."""
    runs: list[list[str]] = []
    wanted, last = set(chosen), None
    for block in blocks:
        if block in wanted:
            if runs and last == runs[-1][-1] and _tower(block) == _tower(last):
                runs[-1].append(block)
            else:
                runs.append([block])
        last = block
    return tuple(Span(first=run[0], last=run[-1]) for run in runs)


def _tower(block: str) -> str:
    return block.rpartition(".")[0]
