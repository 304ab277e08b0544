"""Attention of a picture to itself in bfloat16, a block of scores at a time.

PyTorch's fused attention is made for processors with a matrix unit (AMX). On others it reaches a
quarter of the rate of oneDNN's matrix products. Here those products make the scores, in blocks that
stay in the processor's cache.
"""

from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from minisd.attention import attention
from minisd.stable_diffusion import StableDiffusion
from minisd.unet import CrossAttention
from minisd.vae import AttnBlock

ROWS = 1024  # of scores in a block: 8 MB for the 4096 places of a picture of 512x512
FEW = 512  # fewer places than this are left to the fused attention
STRIDE = 16  # each sixteenth place is enough to guess a row's largest score


def attend_in_blocks(sd: StableDiffusion) -> None:
    """Let the layers of self-attention in UNet and autoencoder work in blocks, in place.

    It helps where `prefers_blocks` is true. The fused attention keeps its scores in float32. Here
    they are bfloat16, so that a layer's error grows from 0.2 to 0.3 or 0.4 %.
    """
    for name, module in [*sd.unet.named_modules(), *sd.vae.named_modules()]:
        if isinstance(module, CrossAttention) and name.endswith("attn1"):
            module.forward = partial(self_attention, module)
        elif isinstance(module, AttnBlock):
            module.forward = partial(picture_attention, module)


def prefers_blocks(dtype: torch.dtype) -> bool:
    """Whether blocks are faster: bfloat16, with instructions for it but without a matrix unit."""
    if dtype != torch.bfloat16 or torch.cpu._is_amx_tile_supported():
        return False
    return torch.cpu._is_avx512_bf16_supported()


def self_attention(layer: CrossAttention, x: Tensor) -> Tensor:
    q, k, v = layer.to_q(x), layer.to_k(x), layer.to_v(x)
    return layer.to_out(attention_in_blocks(q, k, v, layer.heads))


def picture_attention(layer: AttnBlock, x: Tensor) -> Tensor:
    h = layer.norm(x)
    projections = layer.q(h), layer.k(h), layer.v(h)
    q, k, v = (rearrange(y, "b c h w -> b (h w) c") for y in projections)
    h = rearrange(attention_in_blocks(q, k, v, 1), "b (h w) c -> b c h w", h=x.shape[2])
    return x + layer.proj_out(h)


def attention_in_blocks(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """As minisd.attention.attention: q (B, N, C), k and v (B, M, C) -> (B, N, C)."""
    if k.shape[1] < FEW:
        return attention(q, k, v, heads)
    q, k, v = (rearrange(y, "b n (h d) -> (b h) n d", h=heads) for y in (q, k, v))
    sample, scale, zero = k[:, ::STRIDE], q.shape[-1] ** -0.5, q.new_zeros(())
    # Scores are rounded to 16 bits, large ones by more. But softmax ignores what is added to a
    # whole row. So a guess of the row's largest score is subtracted before the rounding: one more
    # column of q holds it, and of k -1. The scores that matter are then near 0, and rounded least.
    k = torch.cat([k, k.new_full((*k.shape[:2], 1), -1)], -1)
    out = v.new_empty(len(v), q.shape[1], v.shape[2])
    for head in range(len(q)):
        for block, result in zip(q[head].split(ROWS), out[head].split(ROWS), strict=True):
            guess = (block @ sample[head].mT).amax(-1, keepdim=True)
            rows = torch.cat([block, guess], -1)
            scores = torch.addmm(zero, rows, k[head].mT, beta=0, alpha=scale)
            torch.mm(torch.softmax(scores, -1, out=scores), v[head], out=result)
    return rearrange(out, "(b h) n d -> b n (h d)", h=heads)
