"""The same models, faster on CPUs and in less memory.

    sd = minisd.load("sd-v1-4.ckpt", dtype=torch.bfloat16)
    minisd.fast.pack(sd)             # CPUs: weights laid out once as oneDNN wants them
    minisd.fast.work_in_strips(sd)   # large pictures: the autoencoder, some rows at a time
    minisd.fast.keep_memory()        # Linux: faster by a tenth and more, for 0.5 GB and more
    minisd.fast.compile(sd)          # GPUs and long series: PyTorch's own compiler

PyTorch's convolutions and matrix products run on oneDNN, which wants weights in blocks of its own
and rearranges them at each call: 1.7 GB for a UNet call in bfloat16. `pack` has that done once, for
convolutions at the first call, since the best blocks depend on the picture's size. The models lose
their state dict by it: load again to save, to train, or to move to another device.

The arithmetic of all is the same; sums may run in another order, which is all that changes.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.checkpoint import StableDiffusion
from minisd.vae import ResnetBlock, Upsample

STRIP = 1 << 23  # numbers in a strip: 32 MB in float32
LARGE = 1 << 26  # numbers in a layer: of more, strips are made. SD's decoder has that many at 512


def give_back() -> None:
    """What was freed, to the system: glibc would keep it, in pieces, half of the weights' size."""
    with suppress(OSError, TypeError, AttributeError):  # systems that have another C library
        ctypes.CDLL(None).malloc_trim(0)


def keep_memory() -> None:
    """Have glibc keep what is freed, in one heap, for this whole process.

    Otherwise each large tensor is fetched from the system anew, as pages that are zeroed one by
    one, and given back when its operation is done. Nothing is given back then but by `give_back`.
    Does nothing where there is no glibc.
    """
    arena_max, mmap_max, trim_threshold, top_pad = -8, -4, -1, -2  # of glibc's malloc.h
    with suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in (
            (arena_max, 1),
            (mmap_max, 0),
            (trim_threshold, -1),
            (top_pad, 1 << 26),
        ):
            mallopt(option, value)


class PackedConv2d(nn.Module):
    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.geometry = ([*conv.padding], [*conv.stride], [*conv.dilation], conv.groups)
        self.weight, self.bias, self.packed = conv.weight, conv.bias, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:  # the best blocks depend on the picture's size
            reorder = torch._C._nn.mkldnn_reorder_conv2d_weight
            packed = reorder(self.weight.to_mkldnn(), *self.geometry, x.shape)
            self.weight, self.packed = nn.Parameter(packed, requires_grad=False), True
            give_back()
        conv = torch.ops.mkldnn._convolution_pointwise
        return conv(x, self.weight, self.bias, *self.geometry, "none", [], "")


class PackedLinear(nn.Module):
    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features = linear.in_features
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight, None)
        self.weight, self.bias = nn.Parameter(packed, requires_grad=False), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def once(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Guidance asks with the same x twice. Up to the first look at the words both halves of that
    batch are the same, some 4 % of the work: hand on one."""
    x, t, context = given
    if len(x) % 2 or not torch.equal(*x.chunk(2)) or not (t == t[0]).all():
        return None
    return x[: len(x) // 2], t[:1], context


def pack(sd: StableDiffusion) -> None:
    """Pack UNet and autoencoder in place. Raises ValueError where there is nothing to gain."""
    if sd.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        raise ValueError("packing is for models on a CPU that oneDNN knows")
    for model in (sd.unet, sd.vae):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Conv2d:
                    setattr(parent, name, PackedConv2d(child))
                elif type(child) is nn.Linear:
                    setattr(parent, name, PackedLinear(child))
    sd.unet.register_forward_pre_hook(once)
    give_back()


def compile(sd: StableDiffusion, **options: object) -> None:
    """Have torch.compile make the UNet anew, in place, for the sizes that it then meets.

    That takes minutes at the first call of each size. Options are torch.compile's:
    `mode="reduce-overhead"` runs by CUDA graphs.
    """
    sd.unet.compile(**{"dynamic": False, **options})


def work_in_strips(sd: StableDiffusion) -> None:
    """Have the autoencoder make its largest layers a strip of rows at a time, in place.

    Where a strip ends its neighbours' rows are read too, and a GroupNorm's mean and variance are
    taken over the whole picture first: no seams, unlike decoding tile by tile. What a decode holds
    at once is then at most 3 GB in float32 at 1024x1024, and grows with the picture's area.
    """
    for module in sd.vae.modules():
        if isinstance(module, ResnetBlock):
            module.forward = partial(block_in_strips, module)
        elif isinstance(module, Upsample):
            module.forward = partial(upsample_in_strips, module)


def strips(x: Tensor) -> list[tuple[int, int]]:
    """(first, last) rows of each strip of x (B, C, H, W)."""
    rows, h = max(16, STRIP // (len(x) * x.shape[1] * x.shape[3])), x.shape[2]
    return [(i, min(i + rows, h)) for i in range(0, h, rows)]


def convolved(
    conv: nn.Module, x: Tensor, prepare: Callable[[Tensor], Tensor], times: int = 1
) -> Tensor:
    """conv(prepare(x)), 3x3, in strips; `prepare` may enlarge `times`."""
    h, out = x.shape[2], None
    for first, last in strips(x):
        low, high = max(first - 1, 0), min(last + 1, h)  # one row more: the convolution's reach
        y = conv(prepare(x[:, :, low:high]))[:, :, (first - low) * times :]
        y = y[:, :, : (last - first) * times]
        if out is None:
            out = y.new_empty(*y.shape[:2], h * times, y.shape[3])
        out[:, :, first * times : last * times] = y
    return out


def normalised(norm: nn.GroupNorm, x: Tensor) -> Callable[[Tensor], Tensor]:
    """strip -> silu(norm(strip)), with the statistics of all of x."""
    b, c, h, _ = x.shape
    found = []
    for first, last in strips(x):
        some = x[:, :, first:last].reshape(b, norm.num_groups, -1).float()
        var, mean = (y.double() for y in torch.var_mean(some, dim=-1, correction=0))
        share = (last - first) / h
        found.append(torch.stack([mean, var + mean**2]) * share)
    mean, square = sum(found).repeat_interleave(c // norm.num_groups, dim=2)  # each (B, C)
    mean, var = mean.float().flatten(), (square - mean**2).float().flatten()
    weight, bias = (y.float().repeat(b) for y in (norm.weight, norm.bias))

    def prepare(strip: Tensor) -> Tensor:  # what a batch norm does at inference, statistics given
        y = F.batch_norm(
            strip.reshape(1, b * c, *strip.shape[2:]), mean, var, weight, bias, eps=norm.eps
        )
        return F.silu(y, inplace=True).view_as(strip)

    return prepare


def block_in_strips(self: ResnetBlock, x: Tensor) -> Tensor:
    if x.numel() <= LARGE:
        return ResnetBlock.forward(self, x)
    h = convolved(self.conv1, x, normalised(self.norm1, x))
    h = convolved(self.conv2, h, normalised(self.norm2, h))
    for first, last in strips(x):
        h[:, :, first:last] += self.nin_shortcut(x[:, :, first:last])
    return h


def upsample_in_strips(self: Upsample, x: Tensor) -> Tensor:
    if 4 * x.numel() <= LARGE:
        return Upsample.forward(self, x)
    return convolved(self.conv, x, lambda y: F.interpolate(y, scale_factor=2.0, mode="nearest"), 2)
