"""Samplers on a network: the distance to a run of 1000 steps, by network calls.

Measured as in the papers on DPM-Solver (Lu et al. 2022, DPM-Solver++). Only for samplers that add
no noise, because the others have no single result to compare with.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minisd.figures.svg import Curves
from minisd.guidance import GuidanceRule, Guided
from minisd.lab.subject import Recorder, final_latent, rms
from minisd.samplers import PredictEps, Sampler, k_dpmpp_2
from minisd.schedule import Schedule, karras, levels_of
from minisd.stable_diffusion import StableDiffusion

STEPS = (5, 7, 10, 15, 20, 30, 50)


@torch.inference_mode()
def compare(
    sd: StableDiffusion,
    samplers: dict[str, Sampler],
    prompt: str,
    guidance: float | GuidanceRule = 7.5,
    schedule: Schedule = karras,
    seed: int = 0,
    reference_steps: int = 1000,
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """For each sampler, by steps: network calls, and the RMS distance to the reference latent.

    The reference is k_dpmpp_2's. Each sampler is yielded as soon as it is measured, because the
    whole comparison takes minutes.
    """
    context, uncond = sd.text_states(prompt), sd.text_states("")
    predict_eps = Guided(sd.unet, context, uncond, guidance)
    side = sd.native_size // sd.vae.factor
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))
    schedules = {steps: levels_of(schedule, steps) for steps in (*STEPS, reference_steps)}

    def draw(sampler: Sampler, model: PredictEps, steps: int) -> Tensor:
        sigmas = schedules[steps]  # some start lower with fewer steps
        return final_latent(sampler, model, sigmas[0] * noise.to(sd.device), sigmas)

    reference = draw(k_dpmpp_2, predict_eps, reference_steps)
    for name, sampler in samplers.items():
        points = []
        for steps in STEPS:
            model = Recorder(predict_eps)
            error = rms(draw(sampler, model, steps) - reference)
            points.append((len(model.calls), error))
        yield name, points


def table(curves: Curves, reference_steps: int = 1000) -> str:
    """As text: two rows for each sampler, a column for each number of steps."""
    title = f"distance to {reference_steps} steps"
    rows = [f"{title:22}" + "".join(f"{steps:>9}" for steps in STEPS) + "  steps"]
    for name, points in curves.items():
        rows.append(f"{name:22}" + "".join(f"{error:9.4f}" for _, error in points))
        rows.append(f"{'  network calls':22}" + "".join(f"{calls:9.0f}" for calls, _ in points))
    return "\n".join(rows)
