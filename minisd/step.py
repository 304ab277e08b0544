"""What a sampler asks (PredictEps) and yields (Step), and how ancestral ones split the noise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PredictEps = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Step:
    """From `x` at noise level `sigma` to `x_next` at `sigma_next`; `eps` was predicted at x."""

    i: int
    sigma: float
    sigma_next: float
    x: Tensor
    eps: Tensor
    x_next: Tensor

    @property
    def x0(self) -> Tensor:
        """The clean latent as the network sees it from here: all of the predicted noise removed."""
        return self.x - self.sigma * self.eps


def ancestral_step(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(down, up): take noise out as far as `down`, add fresh noise of `up`: sigma_next remains.

    down^2 + up^2 = sigma_next^2. DDIM, Song et al. 2020, equation 16, in sigma space; k-diffusion:
    get_ancestral_step. With eta 1 `up` is the spread of DDPM's posterior, with eta 0 it is 0.
    """
    up = min(sigma_next, eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5)
    return (sigma_next**2 - up**2) ** 0.5, up


def check_eta(eta: float, generator: torch.Generator | None) -> None:
    if eta < 0:
        raise ValueError(f"eta must be 0 or more, not {eta}")
    if eta > 0 and generator is None:
        raise ValueError(
            "eta > 0 draws noise: pass generator=torch.Generator().manual_seed(...), or eta=0"
        )
