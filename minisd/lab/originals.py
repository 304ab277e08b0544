"""The samplers of k-diffusion and diffusers, certified as they are; failures confirmed another way.

The certificate runs them through the adapters. Before a failure counts, it must show without the
adapters too: on the library's own schedule, called as the library's users call it.
"""

import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minisd.lab import card
from minisd.lab.card import Line
from minisd.lab.certificate import Certificate, certify, theory_of
from minisd.lab.subject import HIGH, LOW, MIXTURE, POINT, Theory, final_latent, latent, rms
from minisd.more_samplers.adapted_functions import adapted_function
from minisd.more_samplers.adapted_schedulers import adapted_scheduler
from minisd.samplers import SAMPLERS, PredictEps, Sampler
from minisd.schedule import karras

SKIPPED = 5  # levels above the start of a run from the middle
# minisd's sampler that has the theory of the original, and its options.
K_DIFFUSION: dict[str, str] = {
    "sample_euler": "k_euler",
    "sample_euler_ancestral": "k_euler_a",
    "sample_heun": "k_heun",
    "sample_dpm_2": "k_dpm_2",
    "sample_dpm_2_ancestral": "k_dpm_2_a",
    "sample_lms": "k_lms",
    "sample_dpmpp_2s_ancestral": "k_dpmpp_2_a",
    "sample_dpmpp_sde": "dpmpp_sde",
    "sample_dpmpp_2m": "dpmpp_2m",
    "sample_dpmpp_2m_sde": "dpmpp_2m_sde",
    "sample_dpmpp_3m_sde": "dpmpp_3m_sde",
}
DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIMScheduler": ("ddim", {}),
    "DDPMScheduler": ("k_euler_a", {}),
    "PNDMScheduler": ("plms", {}),
    "LMSDiscreteScheduler": ("k_lms", {}),
    "EulerDiscreteScheduler": ("k_euler", {}),
    "EulerAncestralDiscreteScheduler": ("k_euler_a", {}),
    "HeunDiscreteScheduler": ("k_heun", {}),
    "KDPM2DiscreteScheduler": ("k_dpm_2", {}),
    "KDPM2AncestralDiscreteScheduler": ("k_dpm_2_a", {}),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", {}),
    "DPMSolverSinglestepScheduler": ("", {}),
    "DPMSolverSDEScheduler": ("dpmpp_sde", {}),
    "DEISMultistepScheduler": ("deis", {"order": 2}),
    "UniPCMultistepScheduler": ("uni_pc", {"order": 2}),
    "SASolverScheduler": ("", {}),
}
# Options without which the adapter would measure something else.
OPTIONS: dict[str, dict[str, Any]] = {
    # By default it adds noise at the timesteps 200 to 800 of a training of 1000 only.
    "SASolverScheduler": {"tau_func": lambda t: 1.0},
}
# The scheduler's configuration that comes with SD 1.5.
SD_CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "clip_sample": False,
}
# Lines of minisd's own contract. Other programs' users do not rely on them.
OWN_CONTRACT = tuple(
    check.title
    for check in (
        card.CHANGED_DTYPE,
        card.GLOBAL_GENERATOR,
        card.NORMALS_ETA_0,
        card.OWN_NOISE,
        card.SHARED_NOISE,
    )
)
# These need steps of a millionth of a level. There the coefficients of diffusers' DEIS cancel.
NEEDS_SHORT_STEPS = (card.UNEVEN_ORDER.title, card.CORRECTED_ORDER.title)
# Without a theory the nearest whole number is only a guess.
NEEDS_THEORY = (card.ORDER.title, card.WEAK_ORDER.title)
VISIBLE = 0.01  # an error of the known picture, whose standard deviation is 0.8


@dataclass(frozen=True)
class Original:
    """A sampler of another library."""

    library: str
    name: str
    sampler: Callable[..., Any]
    theory: Theory
    twin: str = ""  # minisd's sampler of the same method

    @property
    def is_class(self) -> bool:
        return inspect.isclass(self.sampler)


@dataclass(frozen=True)
class Finding:
    """Lines that fail, and the smallest run that shows it without the adapter; "" if none does."""

    where: str  # "from noise" or "from the middle"
    lines: list[Line]
    confirmation: str


@dataclass(frozen=True)
class Examined:
    original: Original
    certificates: Mapping[str, Certificate]  # by where the runs start
    findings: list[Finding] = field(default_factory=list)
    habits: list[Line] = field(default_factory=list)  # of minisd's own contract


def originals() -> list[Original]:
    """All that are installed. Raises ValueError if neither library is."""
    entries = []
    libraries = {"k_diffusion.sampling": K_DIFFUSION, "diffusers": DIFFUSERS}
    for module_name, names in libraries.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        library = module_name.partition(".")[0]
        for name, twin in names.items():
            if hasattr(module, name):
                twin_name, options = (twin, {}) if isinstance(twin, str) else twin
                own = theory(twin_name, options)
                entries.append(Original(library, name, getattr(module, name), own, twin_name))
    if not entries:
        raise ValueError("the report is about k-diffusion and diffusers: pip install k-diffusion")
    return entries


def theory(twin: str, options: Mapping[str, Any]) -> Theory:
    """The orders of minisd's sampler of the same method. How it counts its calls is its own."""
    if not twin:
        return Theory()
    own = theory_of(twin, options)
    unknown = {"calls": None, "normals": None, "eta": None, "strong_order": None, "defect": None}
    return replace(own, degrees="", **unknown)


def examine(original: Original) -> Examined:
    """The certificates of an original, with what fails and how it was confirmed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries', of their own changes
        if not original.is_class:
            sampler = adapted_function(original.sampler)
            certificates = {"from noise and from the middle": certify_as(original, sampler)}
        else:
            sampler = adapted_scheduler(original.sampler, double=True)
            sampler = partial(sampler, **OPTIONS.get(original.name, {}))
            certificates = {
                "from noise": certify_as(original, sampler),
                "from the middle": certify_as(original, partial(sampler, skipped=SKIPPED)),
            }
        findings: list[Finding] = []
        habits: list[Line] = []
        for where, certificate in certificates.items():
            failures = certificate.failures
            habits += [line for line in failures if line.check in OWN_CONTRACT]
            known = {line.check for finding in findings for line in finding.lines}
            skipped = {*OWN_CONTRACT, *known, *(NEEDS_SHORT_STEPS if original.is_class else ())}
            if original.theory.order is None:
                skipped |= {*NEEDS_THEORY}
            lines = [line for line in failures if line.check not in skipped]
            if lines:
                findings.append(Finding(where, lines, confirmed(original, where)))
    unique = {line.check: line for line in habits}
    return Examined(original, certificates, findings, list(unique.values()))


def certify_as(original: Original, sampler: Callable[..., Any]) -> Certificate:
    return certify(sampler, original.name, original.theory)


# ---- the second route: the library alone ---------------------------------------------------------


def confirmed(original: Original, where: str) -> str:
    """The smallest run of the library itself that shows a failure, in words; "" if none does."""
    if not original.is_class:
        return function_alone(original)
    if where == "from noise":
        for steps in range(1, 11):
            if (error := picture_error(original.sampler, steps)) > VISIBLE:
                usual = picture_error(original.sampler, 10)
                missed = "the only picture that the network knows is missed by"
                reason = (
                    " (the noise of the lowest level, 0.0292)" if abs(error - LOW) < 0.002 else ""
                )
            return (
                f"set_timesteps({steps}): {missed} {error:.3f}{reason}. With 10 steps: {usual:.3f}"
            )
        return ""
    twin = SAMPLERS[original.twin or "k_euler"]
    for steps in range(2, 11):
        for skipped in range(1, steps):
            error, ours = middle_errors(original.sampler, twin, steps, skipped)
            if error > max(0.05, 3 * ours):
                begin = f"set_timesteps({steps}), begun at its step {skipped + 1}"
                error_20, ours_20 = middle_errors(original.sampler, twin, 20, 6)
                usual = "With 20 steps, begun at the 7th (strength 0.7)"
                return (
                    f"{begin}: it ends {error:.3f} from the exact solution, and minisd's "
                    f"{original.twin or 'k_euler'} on the same levels {ours:.3f}. {usual}: "
                    f"{error_20:.3f} and {ours_20:.3f}"
                )
    return ""


def picture_error(kind: Any, steps: int) -> float:
    """From noise, on a network that knows one picture: how far the result is from it."""
    picture = latent(0.0, 0.2, 0.8, size=16).float()

    def predict_eps(x: Tensor, sigma: float) -> Tensor:
        return (x - picture) / sigma

    _, _, x_end = library_run(kind, steps, 0, predict_eps, picture)
    return rms(x_end - picture)


def middle_errors(kind: Any, twin: Sampler, steps: int, skipped: int) -> tuple[float, float]:
    """img2img on the mixture of normals: the errors of the scheduler and of minisd's sampler."""
    picture = MIXTURE.flow(latent(HIGH, size=16), HIGH, LOW)
    x, levels, x_end = library_run(kind, steps, skipped, MIXTURE, picture.float())
    exact = MIXTURE.flow(x.double(), levels[0], LOW)
    x_ours = final_latent(twin, MIXTURE, x.double(), levels)
    return rms(x_end - exact), rms(x_ours - exact)


@torch.no_grad()
def library_run(
    kind: Any, steps: int, skipped: int, predict_eps: PredictEps, picture: Tensor
) -> tuple[Tensor, list[float], Tensor]:
    """A run as diffusers' pipelines do it: the start, the levels of its steps, and the result.

    The scheduler has SD 1.5's configuration, its own table and timesteps, and float32. With skipped
    0 it starts from noise, else from the noisy picture of `add_noise`, as img2img does.
    """
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))
    scheduler = kind.from_config(SD_CONFIG)
    scheduler.set_timesteps(steps)
    begin = skipped * scheduler.order
    timesteps = scheduler.timesteps[begin:]
    if skipped == 0:
        state = noise * scheduler.init_noise_sigma
    else:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        state = scheduler.add_noise(picture, noise, timesteps[:1])
    abars = scheduler.alphas_cumprod.double().numpy()
    logs = np.log((1 - abars) / abars) / 2
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": torch.Generator().manual_seed(2)} if takes_generator else {}
    xs, levels = [], []
    for t in timesteps:
        sigma = math.exp(np.interp(float(t), np.arange(len(logs)), logs))
        xs.append(scheduler.scale_model_input(state, t) * (1 + sigma**2) ** 0.5)
        levels.append(sigma)
        state = scheduler.step(predict_eps(xs[-1], sigma), t, state, **options).prev_sample
    return xs[0], [*dict.fromkeys(levels[:: scheduler.order]), 0.0], state


def function_alone(original: Original) -> str:
    """The shortest run of a k-diffusion function that fails, on a network that knows one point."""

    def model(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        level = float(sigma[0])
        return x - level * POINT(x, level)

    parameters = inspect.signature(original.sampler).parameters
    rng = torch.Generator().manual_seed(2)
    settings: dict[str, Any] = {"disable": True}
    for steps in range(1, 11):
        levels = torch.tensor(karras(10)[10 - steps :], dtype=torch.float64)
        x = latent(float(levels[0]), 0.7, 0.0)
        if "noise_sampler" in parameters:
            settings["noise_sampler"] = lambda *_, x=x: torch.randn(x.shape, generator=rng).to(x)
        run = (
            f"the last {steps} of karras(10)'s steps"
            if steps > 1
            else "the last step of karras(10)"
        )
        try:
            error = rms(original.sampler(model, x, levels, **settings) - 0.7)
        except Exception as failure:
            text = " ".join(f"{type(failure).__name__}: {failure}".split())
            return f"{run} raises {text}"
        if error > VISIBLE:
            return f"{run}: the only point that the network knows is missed by {error:.4f}"
    return ""
