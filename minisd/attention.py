"""Attention, one function that all three models share."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for each head. Vaswani et al. 2017, equation 1.

    q (B, N, C), k and v (B, M, C) -> (B, N, C). With `causal`, no position attends to later ones.
    """
    q, k, v = (rearrange(y, "b n (h d) -> b h n d", h=heads) for y in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return rearrange(out, "b h n d -> b n (h d)")
