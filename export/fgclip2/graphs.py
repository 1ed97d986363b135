"""FG-CLIP 2 as the graphs of a bundle: the reference's weights, rewritten for inference.

Each rewrite is algebra on the same weights and is held to the reference by :mod:`fgclip_rt.export.fgclip2.reference`
and the probe. What remains is MatMul, elementwise operators and attention (:mod:`fgclip_rt.export.attention`), and no
loop over the batch:

- rescaling and normalisation of the pixels are folded into the patch projection, so a caller sends raw bytes, which
  are centred on zero first;
- the attention mask comes from ``spatial_shapes``, and the scale of the scores lies in the query projection;
- the antialiased resize of the position table is a product of two triangle-filter matrices;
- the pooling head's constant query folds the key projection into a [D, heads] matrix, and its value projection moves
  behind the weighted sum (the weights sum to one);
- the text tower's last block computes only the position that is pooled;
- RoIAlign is separable, and the sum of its samples has a closed form (:func:`roi_weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import HIDDEN, hide_keys, multi_head_attention
from . import reference

#: The order in which the text graph stacks its heads; the index is the graph's ``walk_type`` input.
WALK_TYPES: tuple[reference.WalkType, ...] = ("short", "box", "long")

#: Taken from the pixels, whose bytes are then as many above zero as below: all of them fit into a symmetric int8.
_MIDDLE = 128


class Linear(nn.Module):
    """``x @ weight + bias`` with the weight stored [in, out], as MatMul wants it; a view of the reference's."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Take ``weight`` [out, in] and ``bias`` [out], as ``torch.nn.Linear`` keeps them."""
        super().__init__()
        self.weight = nn.Parameter(weight.detach().T, requires_grad=False)
        self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear) -> Linear:
        return cls(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight) + self.bias


class Attention(nn.Module):
    """Multi-head attention from some positions to all. The scale of the scores is folded into the query projection."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], out: nn.Linear, heads: int) -> None:
        """Take the projections of queries, keys and values, [D, D] and [D] each."""
        super().__init__()
        scale = (len(weights[0]) // heads) ** -0.5
        self.q = Linear(weights[0] * scale, biases[0] * scale)
        self.k, self.v = Linear(weights[1], biases[1]), Linear(weights[2], biases[2])
        self.out = Linear.of(out)
        self.heads = heads

    @classmethod
    def of(cls, attention: reference.Attention) -> Attention:
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        weights, biases = [linear.weight for linear in linears], [linear.bias for linear in linears]
        return cls(weights, biases, attention.out_proj, attention.heads)

    @classmethod
    def of_packed(cls, attention: nn.MultiheadAttention) -> Attention:
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        return cls(weights, biases, attention.out_proj, attention.num_heads)

    def forward(self, queries: Tensor, x: Tensor, key_bias: Tensor | None) -> Tensor:
        q, k = self.q(queries), self.k(x)
        if key_bias is not None:
            q, k = hide_keys(q, k, key_bias, self.heads)
        return self.out(multi_head_attention(q, k, self.v(x), self.heads))


class Mlp(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, mlp: reference.Mlp) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear.of(mlp.fc1), Linear.of(mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, reference.EncoderLayer)
        self.norm1, self.norm2 = layer.layer_norm1, layer.layer_norm2
        self.attention = Attention.of(layer.self_attn)
        self.mlp = Mlp(layer.mlp)

    def forward(self, x: Tensor, key_bias: Tensor | None, last_only: bool = False) -> Tensor:
        normed = self.norm1(x)
        if last_only:
            x, queries = x[:, -1:], normed[:, -1:]
        else:
            queries = normed
        x = x + self.attention(queries, normed, key_bias)
        return x + self.mlp(self.norm2(x))


class VisionTower(nn.Module):
    """Raw patches to the last hidden state [B, N, D], and the bias [B, N] that hides what lies past each grid."""

    def __init__(self, model: reference.VisionModel, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        embedding = model.embeddings.patch_embedding
        # A patch is (row, column, channel), so the per-channel constants repeat along the input.
        repeats = embedding.in_features // len(mean)
        means, stds = (torch.tensor(values, dtype=torch.float64).repeat(repeats) for values in (mean, std))
        weight, bias = embedding.weight.detach().double(), embedding.bias.detach().double()
        offset = weight @ ((_MIDDLE / 255 - means) / stds)
        self.patch_embedding = Linear((weight / (255 * stds)).float(), (bias + offset).float())
        self.positions = nn.Parameter(model.embeddings.position_embedding.weight.detach(), requires_grad=False)
        self.grid = model.embeddings.grid
        self.blocks = nn.ModuleList(Block(layer) for layer in model.encoder.layers)
        self.post_norm = model.post_layernorm

    def forward(self, patches: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, Tensor]:
        height, width = spatial_shapes.to(torch.float32)[:, :, None].unbind(1)
        row, column, valid = grid_positions(patches.shape[1], height, width)
        key_bias = torch.where(valid, 0.0, HIDDEN)

        x = self.patch_embedding(patches.to(torch.float32) - _MIDDLE) + self._positions(row, column, height, width)
        for block in self.blocks:
            x = block(x, key_bias)
        return self.post_norm(x), key_bias

    def _positions(self, row: Tensor, column: Tensor, height: Tensor, width: Tensor) -> Tensor:
        # Rows past the image are clamped: their positions mean nothing but must stay finite.
        rows = triangle_weights(torch.minimum(row, height - 1), height, self.grid)
        columns = triangle_weights(column, width, self.grid)
        weights = (rows[..., :, None] * columns[..., None, :]).flatten(2)
        return torch.matmul(weights, self.positions)


def grid_positions(length: int, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of each of ``length`` patches, float [B, N], and whether it lies on the grid, bool [B, N].

    ``height`` and ``width``, float [B, 1], are the grids' sizes.
    """
    index = torch.arange(length, dtype=torch.float32)[None]
    # Indices stay far below 2**24 and a rounded quotient never reaches the next integer, so this is exact.
    row = torch.floor(index / width)
    return row, index - row * width, index < height * width


def triangle_weights(position: Tensor, size: Tensor, source: int) -> Tensor:
    """Weights of an antialiased bilinear resize along one axis.

    As ``torch.nn.functional.interpolate(mode="bilinear", antialias=True, align_corners=False)`` from ``source`` to
    ``size`` samples (Pillow's triangle filter): when shrinking, the triangle is as wide as the step.

    Args:
        position: float [B, N], the target index along the axis, in 0…size-1.
        size: float [B, 1], the target length.
        source: the length of the table.

    Returns:
        float [B, N, source]; each row sums to one.
    """
    step = source / size
    reach = torch.clamp(step, min=1.0)
    centre = (position + 0.5) * step
    taps = torch.arange(source, dtype=torch.float32) + 0.5
    weights = torch.relu(1 - torch.abs(taps - centre[..., None]) / reach[..., None])
    return weights / weights.sum(-1, keepdim=True)


class PoolingHead(nn.Module):
    """Attention pooling with its constant query folded into the key projection."""

    def __init__(self, head: reference.PoolingHead) -> None:
        super().__init__()
        attention = head.attention
        heads, width = attention.num_heads, attention.embed_dim
        wq, wk, wv = attention.in_proj_weight.detach().chunk(3)
        bq, _, bv = attention.in_proj_bias.detach().chunk(3)
        query = (head.probe.detach().view(width).double() @ wq.double().T + bq.double()) * (width // heads) ** -0.5
        keys = torch.einsum("hd,hdc->ch", query.view(heads, -1), wk.double().view(heads, -1, width))
        # The key bias shifts every score of a head alike, and the softmax takes it away again.
        self.keys = nn.Parameter(keys.float(), requires_grad=False)
        self.values = nn.Parameter(wv.view(heads, -1, width).transpose(1, 2), requires_grad=False)
        self.value_bias = nn.Parameter(bv, requires_grad=False)
        self.out = Linear.of(attention.out_proj)
        self.norm = head.layernorm
        self.mlp = Mlp(head.mlp)

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        weights = torch.softmax(torch.matmul(x, self.keys).transpose(1, 2) + key_bias[:, None, :], dim=-1)
        mixed = torch.matmul(weights, x)  # [B, heads, D]
        values = torch.matmul(mixed[:, :, None, :], self.values)  # [B, heads, 1, D / heads]
        y = self.out(values.flatten(1) + self.value_bias)
        return y + self.mlp(self.norm(y))


class DenseHead(nn.Module):
    """The dense head: one more attention, from every patch to all, with no residual around it."""

    def __init__(self, head: reference.PoolingHead) -> None:
        super().__init__()
        self.attention = Attention.of_packed(head.attention)
        self.norm = head.layernorm
        self.mlp = Mlp(head.mlp)

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        y = self.attention(x, x, key_bias)
        return y + self.mlp(self.norm(y))


class VisionGraph(nn.Module):
    """``vision.onnx``: patches uint8 [B, N, P·P·3], spatial_shapes int32 [B, 2] → features and embeds [B, D]."""

    def __init__(self, tower: VisionTower, pooling: PoolingHead) -> None:
        super().__init__()
        self.vision, self.pooling = tower, pooling

    def forward(self, patches: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, Tensor]:
        features = self.pooling(*self.vision(patches, spatial_shapes))
        return features, F.normalize(features, dim=-1)


class DenseGraph(nn.Module):
    """``dense.onnx``: as :class:`VisionGraph`, and dense features [B, N, D]."""

    def __init__(self, tower: VisionTower, pooling: PoolingHead, dense: DenseHead) -> None:
        super().__init__()
        self.vision, self.pooling, self.dense = tower, pooling, dense

    def forward(self, patches: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, key_bias = self.vision(patches, spatial_shapes)
        features = self.pooling(x, key_bias)
        return features, F.normalize(features, dim=-1), self.dense(x, key_bias)


class TextTower(nn.Module):
    """Tokens to the pooled state, the last position."""

    def __init__(self, model: reference.TextModel) -> None:
        super().__init__()
        embeddings = model.embeddings
        self.tokens = nn.Parameter(embeddings.token_embedding.weight.detach(), requires_grad=False)
        self.positions = nn.Parameter(self._position_tables(embeddings), requires_grad=False)
        self.blocks = nn.ModuleList(Block(layer) for layer in model.encoder.layers)
        self.post_norm = model.final_layer_norm

    @staticmethod
    def _position_tables(embeddings: reference.TextEmbeddings) -> Tensor:
        """One table [walk types, L, D]; the rows past a shorter walk type's length are never read."""
        short = embeddings.position_embedding.weight.detach()
        ori, res = (e.weight.detach() for e in (embeddings.position_embedding_ori, embeddings.position_embedding_res))
        long = torch.cat([ori[: embeddings.keep_len], res[embeddings.keep_len :]])
        length = max(len(short), len(long))
        tables = {"short": short, "box": short, "long": long}
        return torch.stack([F.pad(tables[name], (0, 0, 0, length - len(tables[name]))) for name in WALK_TYPES])

    def forward(self, input_ids: Tensor, walk_type: Tensor, attention_mask: Tensor | None) -> Tensor:
        key_bias = None if attention_mask is None else torch.where(attention_mask != 0, 0.0, HIDDEN)
        positions = torch.index_select(self.positions, 0, walk_type[None])[:, : input_ids.shape[1]]
        x = F.embedding(input_ids, self.tokens) + positions
        for block in self.blocks[:-1]:
            x = block(x, key_bias)
        return self.post_norm(self.blocks[-1](x, key_bias, last_only=True)[:, 0])


class TextGraph(nn.Module):
    """``text.onnx``: input_ids int32 [B, L], walk_type int32 [] → features and embeds [B, D].

    Where the checkpoint's tokenizer makes one, there is a third input, ``attention_mask`` int32 [B, L].
    """

    def __init__(self, model: reference.Fgclip2) -> None:
        super().__init__()
        self.text = TextTower(model.text_model)
        by_name = {"short": model.text_model.head, "box": model.boxtext_head, "long": model.longtext_head}
        heads = [by_name[name] for name in WALK_TYPES]
        # All heads run and one is kept: they cost nothing next to the tower, and their weights stay constants.
        self.text_heads = Linear(torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads]))

    def forward(
        self, input_ids: Tensor, walk_type: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        outputs = self.text_heads(self.text(input_ids, walk_type, attention_mask)).unflatten(1, (len(WALK_TYPES), -1))
        features = torch.index_select(outputs, 1, walk_type[None])[:, 0]
        return features, F.normalize(features, dim=-1)


class RegionGraph(nn.Module):
    """``region.onnx``: dense features and boxes → region features and embeds [R, D]. No weights of its own.

    Inputs: dense_features float32 [B, N, D]; spatial_shapes int32 [B, 2] (rows, columns); image_sizes int32 [B, 2]
    (height, width of the original images in pixels); boxes float32 [R, 4] (xyxy in those pixels); box_images
    int32 [R], the index in the batch of the image that each box belongs to.
    """

    def forward(
        self, dense_features: Tensor, spatial_shapes: Tensor, image_sizes: Tensor, boxes: Tensor, box_images: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, length, _ = dense_features.shape
        grid = torch.index_select(spatial_shapes, 0, box_images).to(torch.float32)
        size = torch.index_select(image_sizes, 0, box_images).to(torch.float32)
        height, width = grid[:, 0:1], grid[:, 1:2]
        row, column, valid = grid_positions(length, height, width)

        # Divide, then multiply, as the reference does: the number of samples is a ceiling and feels a rounding error.
        x1, x2 = (boxes[:, i : i + 1] / size[:, 1:2] * width - 0.5 for i in (0, 2))
        y1, y2 = (boxes[:, i : i + 1] / size[:, 0:1] * height - 0.5 for i in (1, 3))
        weights = roi_weights(row, y1, y2, height) * roi_weights(column, x1, x2, width)
        weights = weights * valid

        # One product for all images: a box's weights stand in its own image's columns and are zero elsewhere.
        own = box_images[:, None] == torch.arange(batch, dtype=torch.int32)[None]
        spread = (own.to(torch.float32)[:, :, None] * weights[:, None, :]).flatten(1)
        features = torch.matmul(spread, dense_features.flatten(0, 1))
        return features, F.normalize(features, dim=-1)


def roi_weights(cell: Tensor, start: Tensor, stop: Tensor, size: Tensor) -> Tensor:
    """Mean weight that one cell gets from the samples of a RoIAlign bin along one axis.

    The bin [start, stop] has g = ceil(stop - start) samples, evenly spaced. Sample s gives cell i the hat function
    max(0, 1 - |s - i|), except that samples up to one cell outside the grid count as on its border and those further
    out as zero. The samples between two neighbouring cells form an arithmetic series, so their sum needs only the
    first and the last index: no axis for the samples, whatever the size of the box.

    Args:
        cell: float [R, N], cell index along the axis.
        start: float [R, 1], the bin's start, in cells, half-pixel shift included.
        stop: float [R, 1], its end.
        size: float [R, 1], number of cells along the axis.

    Returns:
        float [R, N].
    """
    extent = stop - start
    count = torch.clamp(torch.ceil(extent), min=0.0)
    divisor = torch.clamp(count, min=1.0)
    step = torch.clamp(extent / divisor, min=torch.finfo(torch.float32).tiny)

    def sample(index: Tensor) -> Tensor:
        return start + (index + 0.5) * extent / divisor

    # How many samples lie before a position, by testing the nearest one: on the outer borders, where a sample either
    # counts in full or not at all, a rounded quotient alone would decide wrongly.
    def samples_before(position: Tensor, compare: Callable[[Tensor, Tensor], Tensor] = torch.lt) -> Tensor:
        nearest = torch.round((position - start) / step - 0.5)
        return torch.minimum(torch.relu(nearest + compare(sample(nearest), position).to(torch.float32)), count)

    at_border = cell >= size - 1
    low, middle = samples_before(cell - 1), samples_before(cell)
    high = torch.where(at_border, samples_before(size, torch.le), samples_before(cell + 1))

    below, above = torch.relu(middle - low), torch.relu(high - middle)
    centre_below = sample((low + middle - 1) * 0.5)
    centre_above = sample((middle + high - 1) * 0.5)
    weight_below = torch.where(cell <= 0, below, below * (centre_below - (cell - 1)))
    weight_above = torch.where(at_border, above, above * (cell + 1 - centre_above))
    return (weight_below + weight_above) / divisor
