"""CFG++: guidance for the clean latent only; the noise that is added back is eps_uncond.

Chung et al. 2024 (arXiv 2406.08070), algorithm 2. Guidance is 0 to 1 here, 0.6 in the paper; 7.5
gives burnt pictures. The two predictions come from `predict_eps.both(x, sigma)`, and
`predict_eps.guide` combines them with the guidance of the run, as `Guided` does.
"""

import warnings
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from minisd.samplers import PredictEps, Rng, Step, ancestral_step, check_eta, fresh_noise


def euler_cfg_pp(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """Euler's method with CFG++. ComfyUI: sample_euler_cfg_pp; `ddim_cfg_pp` with eta 0."""
    return ddim_cfg_pp(predict_eps, x, sigmas)


def ddim_cfg_pp(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], eta: float = 0.0, generator: Rng = None
) -> Iterator[Step]:
    """DDIM with CFG++: x_next = x0 + down * eps_uncond + up * noise, where x0 is guided.

    Step.eps is the guided one. With eta > 0 it draws noise at every step, as `ddim` does.
    """
    check_eta(eta, generator)
    guidance = getattr(predict_eps, "guidance", 1)
    if isinstance(guidance, int | float) and guidance > 2:
        warnings.warn(
            f"CFG++ expects a guidance of 0 to 1, such as 0.6, not {guidance}", stacklevel=2
        )
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps_uncond, eps = both_and_guided(predict_eps, x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        x_next = x - sigma * eps + down * eps_uncond
        if eta > 0:
            x_next = x_next + up * fresh_noise(x, generator, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def both_and_guided(predict_eps: PredictEps, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """(eps_uncond, guided eps). Raises ValueError if predict_eps cannot give both."""
    both, guide = getattr(predict_eps, "both", None), getattr(predict_eps, "guide", None)
    if both is None or guide is None:
        raise ValueError(
            "CFG++ needs the predictions with and without the prompt: give it a predict_eps with "
            "the methods both(x, sigma) and guide(eps_uncond, eps_cond, x, sigma), such as Guided"
        )
    eps_uncond, eps_cond = both(x, sigma)
    return eps_uncond, guide(eps_uncond, eps_cond, x, sigma)
