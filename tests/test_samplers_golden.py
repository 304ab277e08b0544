"""Every sampler against the results of the original implementations (the end of golden/README.md).

The model is exact: a mixture of two normals, with its denoiser written here from the README's
formula. The tolerance is 1e-9: float64 rounds by 1e-15 a step, amplified by a gain below 30. The
`vp` values were computed in float32 from a float32 abar: 1e-4.
"""

import ast
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from minisd.lab import Mixture
from minisd.run import random_stream
from minisd.samplers import SAMPLERS
from minisd.schedule import SCHEDULES, SIGMAS, start_index

from .conftest import golden

VALUES, METADATA = golden("samplers")
CASES = sorted(name for name in VALUES if "k_" in name)
MIXTURE = ast.literal_eval(METADATA["mixture"])


def predict_eps(x: Tensor, sigma: float) -> Tensor:
    likelihood = [
        w * torch.exp(-((x - m) ** 2) / (2 * (s**2 + sigma**2))) / (s**2 + sigma**2) ** 0.5
        for w, m, s in MIXTURE
    ]
    means = [(m * sigma**2 + s**2 * x) / (s**2 + sigma**2) for w, m, s in MIXTURE]
    x0 = sum(p * mean for p, mean in zip(likelihood, means)) / sum(likelihood)
    return (x - x0) / sigma


def noise_stream() -> torch.Generator:
    return torch.Generator().manual_seed(int(METADATA["noise"]))


def test_every_golden_value_is_used():
    inputs = {"karras.sigmas", "karras.x", "model.sigmas", "model.x", "vp.timesteps", "vp.x"}
    assert set(VALUES) - set(CASES) - inputs == {"vp.ddim.eta0", "vp.ddim.eta0.7", "vp.plms"}


@pytest.mark.parametrize("case", CASES)
def test_samplers_equal_k_diffusion(case):
    schedule, name, *order = case.split(".")
    options = {"order": int(order[0].removeprefix("order"))} if order else {}
    if name.endswith("_a"):
        options["generator"] = noise_stream()
    sigmas = SCHEDULES[schedule](int(METADATA["n"]))[int(METADATA["start"]) :]
    original = VALUES[f"{schedule}.sigmas"].tolist()
    assert sigmas == pytest.approx(original, rel=1e-9)

    *_, last = SAMPLERS[name](predict_eps, VALUES[f"{schedule}.x"], original, **options)
    torch.testing.assert_close(last.x_next, VALUES[case], rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", ["ddim.eta0", "ddim.eta0.7", "plms"])
def test_samplers_equal_compvis(case):
    sigmas = SCHEDULES["ddim"](int(METADATA["vp_steps"]))
    assert sigmas[:-1] == [SIGMAS[t] for t in VALUES["vp.timesteps"].sort(descending=True).values]
    options = {"eta": 0.7, "generator": noise_stream()} if case.endswith("0.7") else {}
    x = VALUES["vp.x"].double() * (sigmas[0] ** 2 + 1) ** 0.5
    *_, last = SAMPLERS[case.split(".")[0]](predict_eps, x, sigmas, **options)
    latent = last.x_next / (sigmas[-1] ** 2 + 1) ** 0.5
    torch.testing.assert_close(latent, VALUES[f"vp.{case}"].double(), rtol=0, atol=1e-4)


class Guided:
    """An exact model with the methods of guidance. Its two predictions are equal.

    Far from the data its logarithms are finite, where the likelihoods of the formula above are 0.
    """

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return Mixture(MIXTURE)(x, sigma)

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return self(x, sigma), self(x, sigma)

    def guide(self, eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        return eps_cond


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_at_any_strength_on_every_schedule(name, schedule):
    """The fewest steps included: there a step goes from the highest level to the lowest."""
    fewest = [(steps, strength) for steps in (1, 2, 3, 4) for strength in (0.5, 1)]
    for steps, strength in [*fewest, (10, 0.7), (10, 0.1), (10, 0), (50, 1)]:
        sigmas = SCHEDULES[schedule](steps)[start_index(steps, strength) :]
        x = 0.5 + sigmas[0] * torch.randn(1, 4, 8, 8, generator=noise_stream())
        sampler = SAMPLERS[name]
        done = list(sampler(Guided(), x, sigmas, **random_stream(sampler, [noise_stream()])))
        assert [(s.sigma, s.sigma_next) for s in done] == list(pairwise(sigmas))
        for step in done:
            assert step.x_next.dtype == x.dtype
            assert step.x_next.abs().max() < 100  # k_dpm_2_a at 2 steps: 47


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.endswith("_a")])
def test_samplers_that_draw_need_a_generator(name):
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="pass generator="):
        next(SAMPLERS[name](predict_eps, x, [1.0, 0.5]))
    with pytest.raises(ValueError, match="0 or more"):
        next(SAMPLERS[name](predict_eps, x, [1.0, 0.5], eta=-0.1))
    assert len(list(SAMPLERS[name](predict_eps, x, [1.0, 0.5, 0.0], eta=0))) == 2


def test_exponential_schedule():
    sigmas = SCHEDULES["exponential"](7)
    assert sigmas[0] == pytest.approx(SIGMAS[-1]) and sigmas[-2] == pytest.approx(SIGMAS[0])
    assert sigmas[-1] == 0 and len(sigmas) == 8
    ratios = [a / b for a, b in pairwise(sigmas[:-1])]
    assert ratios == pytest.approx([ratios[0]] * 6)
    assert len(SCHEDULES["exponential"](1)) == 2
