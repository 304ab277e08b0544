"""What the sampler asks: which noise is in x? Answered with classifier-free guidance."""

import torch
from torch import Tensor

from minisd.samplers import PredictEps
from minisd.schedule import sigma_to_t
from minisd.unet import UNet


def guided(unet: UNet, context: Tensor, uncond: Tensor, guidance: float) -> PredictEps:
    """`predict_eps(x, sigma)` for the prompt's text states `context`, away from those of `uncond`
    (1 or B, 77, C).

    eps = eps_uncond + guidance * (eps_cond - eps_uncond): guidance 1 is the plain prediction for
    the prompt (and half the work), more exaggerates what the prompt changes. Ho & Salimans 2022,
    whose w is guidance - 1.
    """

    def predict_eps(x: Tensor, sigma: float) -> Tensor:
        x_in = x / (sigma**2 + 1) ** 0.5  # the network knows latents of variance 1
        t = torch.full((len(x),), sigma_to_t(sigma), device=x.device)
        cond = context.expand(len(x), -1, -1)
        if guidance == 1:
            return unet(x_in, t, cond)
        both = torch.cat([uncond.expand(len(x), -1, -1), cond])  # CompVis's order
        eps_uncond, eps_cond = unet(x_in.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return eps_uncond + guidance * (eps_cond - eps_uncond)

    return predict_eps
