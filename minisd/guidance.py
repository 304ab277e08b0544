"""The question that a sampler asks, "which noise is in x?", answered with classifier-free guidance.

The network predicts twice: once for the prompt and once for the negative prompt (usually empty).
Guidance moves the prediction away from the second, which exaggerates what the prompt changes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minisd.schedule import sigma_to_t

GuidanceRule = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class Guided:
    """`predict_eps(x, sigma) -> eps`, both (B, 4, h, w), for the text states of a prompt.

    unet      `unet(x_in, t, context) -> eps`, which expects latents of variance 1
    context, uncond  text states (1 or B, 77, C) of the prompt and of the negative prompt
    guidance  a number, for eps_uncond + guidance * (eps_cond - eps_uncond); Ho & Salimans 2022,
              whose w is guidance - 1. With 1 the network predicts for the prompt alone.
              Or a rule of your own: a function (eps_uncond, eps_cond, x, sigma) -> eps
    """

    def __init__(
        self,
        unet: Callable[[Tensor, Tensor, Tensor], Tensor],
        context: Tensor,
        uncond: Tensor,
        guidance: float | GuidanceRule,
    ):
        self.unet, self.context, self.uncond, self.guidance = unet, context, uncond, guidance
        self.sigma_to_t = getattr(unet, "sigma_to_t", sigma_to_t)  # of another training schedule

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        if self.guidance == 1:
            x_in, t = self.network_input(x, sigma)
            return self.unet(x_in, t, self.context.expand(len(x), -1, -1))
        return self.guide(*self.both(x, sigma), x, sigma)

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """(eps_uncond, eps_cond), computed as one batch in the order of CompVis."""
        x_in, t = self.network_input(x, sigma)
        context = torch.cat([y.expand(len(x), -1, -1) for y in (self.uncond, self.context)])
        eps = self.unet(x_in.repeat(2, 1, 1, 1), t.repeat(2), context)
        eps_uncond, eps_cond = eps.chunk(2)
        return eps_uncond, eps_cond

    def guide(self, eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        if callable(self.guidance):
            return self.guidance(eps_uncond, eps_cond, x, sigma)
        return eps_uncond + self.guidance * (eps_cond - eps_uncond)

    def network_input(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """x scaled to variance 1, and its timestep for each image: (B, 4, h, w) and (B,)."""
        t = torch.full((len(x),), self.sigma_to_t(sigma), device=x.device)
        return x / (sigma**2 + 1) ** 0.5, t
