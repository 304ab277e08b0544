"""Guidance calls the UNet with the same latent twice: compute what is equal only once.

The two halves of that batch differ in their text states alone. Until the first cross-attention
reads these, both compute the same: about 4 % of the work of a call.
"""

import torch
from torch import Tensor, nn

from minisd.unet import SpatialTransformer, UNet


def share_halves(unet: UNet) -> None:
    """Let the first row with attention work on one half, up to its cross-attention, in place.

    It applies to guided calls for one picture. The rows before run for both halves, since the way
    up reads their outputs; SD 1.x has only a convolution there. Hooks that are registered later on
    the UNet and on the cross-attention get both halves. Hooks on the layers between get one.
    """
    for row in unet.input_blocks:
        transformers = [layer for layer in row.children() if isinstance(layer, SpatialTransformer)]
        if transformers:
            row.register_forward_pre_hook(keep_one_half)
            cross_attention = transformers[0].get_submodule("transformer_blocks.0.attn2")
            cross_attention.register_forward_pre_hook(restore_both_halves)
            return


def keep_one_half(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """(x, time, context) of a row: x (2, C, h, w) -> (1, C, h, w) if both images are equal."""
    x, time, context = inputs
    if len(x) != 2 or not torch.equal(x[0], x[1]) or not torch.equal(time[0], time[1]):
        return None
    return x[:1], time[:1], context


def restore_both_halves(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """(x, context) of the cross-attention: x (1, N, C) -> (2, N, C) if context has two.

    The residual additions after it add (1, ...) and (2, ...), which makes both halves again.
    """
    x, context = inputs
    return None if len(x) == len(context) else (x.repeat(len(context), 1, 1), context)
