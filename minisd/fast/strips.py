"""The autoencoder's largest layers, computed on a few rows of the picture at a time."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.stable_diffusion import StableDiffusion
from minisd.vae import ResnetBlock, Upsample

STRIP = 1 << 23  # numbers in a strip: 32 MB in float32
# Layers of more numbers than this work in strips. SD 1.x's largest has just as many at 512x512.
LARGE = 1 << 26


def work_in_strips(sd: StableDiffusion) -> None:
    """Let the autoencoder compute its largest layers a strip of rows at a time, in place.

    There are no seams, as there are when decoding in tiles: a strip also reads the rows next to it,
    and each GroupNorm takes mean and variance of the whole picture first. At 1024x1024 a decode
    then needs at most 3 GB in float32, and more in proportion to the picture's area.
    """
    for module in sd.vae.modules():
        if isinstance(module, ResnetBlock):
            module.forward = partial(block_in_strips, module)
        elif isinstance(module, Upsample):
            module.forward = partial(upsample_in_strips, module)


def block_in_strips(block: ResnetBlock, x: Tensor) -> Tensor:
    if x.numel() <= LARGE:
        return ResnetBlock.forward(block, x)
    h = conv_in_strips(block.conv1, x, norm_and_silu(block.norm1, x))
    h = conv_in_strips(block.conv2, h, norm_and_silu(block.norm2, h))
    for first, last in row_ranges(x):
        h[:, :, first:last] += block.nin_shortcut(x[:, :, first:last])
    return h


def upsample_in_strips(layer: Upsample, x: Tensor) -> Tensor:
    if 4 * x.numel() <= LARGE:
        return Upsample.forward(layer, x)
    enlarge = partial(F.interpolate, scale_factor=2.0, mode="nearest")
    return conv_in_strips(layer.conv, x, enlarge, scale=2)


def row_ranges(x: Tensor) -> list[tuple[int, int]]:
    """The strips of x (B, C, H, W): first row, and the row after the last."""
    rows, h = max(16, STRIP // (len(x) * x.shape[1] * x.shape[3])), x.shape[2]
    return [(i, min(i + rows, h)) for i in range(0, h, rows)]


def conv_in_strips(
    conv: nn.Module, x: Tensor, prepare: Callable[[Tensor], Tensor], scale: int = 1
) -> Tensor:
    """conv(prepare(x)) for a 3x3 convolution, in strips.

    x (B, C, H, W) -> (B, C', scale * H, scale * W), where `prepare` enlarges by `scale`.
    """
    h = x.shape[2]
    out = torch.empty(0)
    for first, last in row_ranges(x):
        low, high = max(first - 1, 0), min(last + 1, h)  # one row more: the convolution reads it
        y = conv(prepare(x[:, :, low:high]))[:, :, (first - low) * scale :]
        y = y[:, :, : (last - first) * scale]
        if first == 0:
            out = y.new_empty(*y.shape[:2], h * scale, y.shape[3])
        out[:, :, first * scale : last * scale] = y
    return out


def norm_and_silu(norm: nn.GroupNorm, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A function strip -> silu(norm(strip)) that uses the statistics of all of x (B, C, H, W)."""
    b, c, h, _ = x.shape
    moments = []  # of each strip, weighted by its share of the rows: mean and mean square
    for first, last in row_ranges(x):
        groups = x[:, :, first:last].reshape(b, norm.num_groups, -1).float()
        var, mean = (y.double() for y in torch.var_mean(groups, dim=-1, correction=0))
        moments.append(torch.stack([mean, var + mean**2]) * ((last - first) / h))
    total = sum(moments, torch.zeros(()))  # (2, B, groups)
    mean, square = total.repeat_interleave(c // norm.num_groups, dim=2)  # (B, C) each
    mean, var = mean.float().flatten(), (square - mean**2).float().flatten()
    weight, bias = (y.float().repeat(b) for y in (norm.weight, norm.bias))

    def prepare(strip: Tensor) -> Tensor:
        # A batch norm at inference is a normalisation with given statistics.
        flat = strip.reshape(1, b * c, *strip.shape[2:])
        y = F.batch_norm(flat, mean, var, weight, bias, eps=norm.eps)
        return F.silu(y, inplace=True).view_as(strip)

    return prepare
