"""Guidance rules beyond the plain one: (eps_uncond, eps_cond, x, sigma) -> eps.

Each function here makes a rule from its parameters, of which `scale` comes first. Rules hold no
state, and treat each image of a batch by itself. D is the clean latent x - sigma * eps.

    img2img(sd, ..., guidance=rescale(7.5))
"""

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from minisd.guidance import GuidanceRule
from minisd.run import lookup

IMAGE = (1, 2, 3)  # the dimensions of one image of a batch


def plain(scale: float) -> GuidanceRule:
    """Classifier-free guidance: Ho & Salimans 2022, equation 6, whose w is scale - 1."""

    def rule(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        return eps_uncond + scale * (eps_cond - eps_uncond)

    return rule


def rescale(scale: float, phi: float = 0.7) -> GuidanceRule:
    """Bring the guided eps part of the way back to eps_cond's standard deviation.

    Lin et al. 2023 (arXiv 2305.08891), section 3.4; diffusers: rescale_noise_cfg. phi 0 is
    plain guidance, and 1 restores the standard deviation.
    """

    def rule(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        eps = eps_uncond + scale * (eps_cond - eps_uncond)
        ratio = eps_cond.std(IMAGE, keepdim=True) / eps.std(IMAGE, keepdim=True)
        return phi * ratio * eps + (1 - phi) * eps

    return rule


def interval(scale: float, low: float = 0.28, high: float = 5.42) -> GuidanceRule:
    """Guidance for sigma in (low, high]; eps_cond elsewhere.

    Kynkaanniemi et al. 2024 (arXiv 2404.07724). The default is their interval for SD-XL, which
    ComfyUI has too.
    """

    def rule(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        if not low < sigma <= high:
            return eps_cond
        return eps_uncond + scale * (eps_cond - eps_uncond)

    return rule


def dynamic_thresholding(
    scale: float, quantile: float = 0.995, limit: float | None = None
) -> GuidanceRule:
    """Where D is too large, clip it at its own quantile, and scale it down to the limit.

    Saharia et al. 2022 (Imagen), section 2.3, where D is a picture and the limit is 1. A latent has
    no fixed range, so the default limit is the same quantile of the D of the prompt alone.
    """

    def rule(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        eps = eps_uncond + scale * (eps_cond - eps_uncond)
        x0, x0_cond = x - sigma * eps, x - sigma * eps_cond
        reach = quantile_of(x0, quantile)
        allowed = quantile_of(x0_cond, quantile) if limit is None else torch.full_like(reach, limit)
        clipped = x0.clamp(-reach, reach) * (allowed / reach)
        return torch.where(reach > allowed, (x - clipped) / sigma, eps)

    return rule


def quantile_of(x0: Tensor, quantile: float) -> Tensor:
    """(B, 1, 1, 1): the quantile of each image's absolute values."""
    values = x0.flatten(1).abs().float() if x0.dtype != torch.float64 else x0.flatten(1).abs()
    return torch.quantile(values, quantile, dim=1).to(x0).view(-1, 1, 1, 1)


def apg(scale: float, eta: float = 0.0, limit: float = inf) -> GuidanceRule:
    """Adaptive projected guidance: leave out the part of guidance that only scales the picture.

    Sadat et al. 2024 (arXiv 2410.02416), without its momentum, which would need a
    memory. The difference D_cond - D_uncond is shortened to the norm `limit`, and its part along
    D_cond, which saturates colours, counts `eta` times.
    """

    def rule(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        x0_cond = x - sigma * eps_cond
        difference = sigma * (eps_uncond - eps_cond)  # of the x0s: x cancels
        norm = difference.square().sum(IMAGE, keepdim=True).sqrt()
        difference = difference * (limit / norm.clamp(min=1e-12)).clamp(max=1)
        parallel = projection(difference, x0_cond)
        x0 = x0_cond + (scale - 1) * (difference - parallel + eta * parallel)
        return (x - x0) / sigma

    return rule


def cfg_zero_star(scale: float) -> GuidanceRule:
    """CFG-Zero*: first scale eps_uncond so that it is as near to eps_cond as it can be.

    Fan et al. 2025 (arXiv 2503.18886). The paper's other half, a first step without
    any change, is for flow matching: here noise would stay in the picture.
    """

    def rule(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        nearest = projection(eps_cond, eps_uncond)
        return nearest + scale * (eps_cond - nearest)

    return rule


def projection(vector: Tensor, direction: Tensor) -> Tensor:
    """The part of each image's vector along its direction."""
    product = (vector * direction).sum(IMAGE, keepdim=True)
    return product / direction.square().sum(IMAGE, keepdim=True).clamp(min=1e-12) * direction


GUIDANCE_RULES: dict[str, Callable[[float], GuidanceRule]] = {
    "plain": plain,
    "rescale": rescale,
    "interval": interval,
    "dynamic_thresholding": dynamic_thresholding,
    "apg": apg,
    "cfg_zero_star": cfg_zero_star,
}


def guidance_rule(name: str, scale: float) -> GuidanceRule:
    """The rule of that name with this scale; FILE.py:FUNCTION is a rule with a scale of its own.

    Raises ValueError for an unknown name, OSError for a missing file.
    """
    if name in GUIDANCE_RULES:
        return GUIDANCE_RULES[name](scale)
    return lookup("guidance rule", name, GUIDANCE_RULES)
