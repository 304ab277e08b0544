"""Samplers on a network: distance to a 1000-step solution, by network calls.

As the DPM-Solver papers measure it (Lu et al. 2022, DPM-Solver++), on the weights that
come with minisd or on others. Only for samplers that add no noise: the others have no one result.
"""

from collections.abc import Iterator

import torch

from minisd.checkpoint import StableDiffusion
from minisd.guidance import guided
from minisd.lab.plot import Curves
from minisd.lab.subject import Recorder, Sampler, rms, run
from minisd.samplers import k_dpmpp_2
from minisd.schedule import SCHEDULES

STEPS = (5, 7, 10, 15, 20, 30, 50)


@torch.inference_mode()
def compare(
    sd: StableDiffusion,
    samplers: dict[str, Sampler],
    prompt: str,
    guidance: float = 7.5,
    schedule: str = "karras",
    seed: int = 0,
    reference_steps: int = 1000,
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """For each sampler, by steps: network calls and RMS of its latent less the reference's.

    The reference is k_dpmpp_2's. It yields a sampler as soon as it is measured, since this takes
    long.
    """
    context, uncond = sd.text_states(prompt), sd.text_states("")
    model = guided(sd.unet, context, uncond, guidance)
    side = sd.native_size // sd.vae.factor
    grid = SCHEDULES[schedule]
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))
    x = grid(1)[0] * noise.to(sd.device)
    reference = run(k_dpmpp_2, model, x, grid(reference_steps))[-1].x_next
    for name, sampler in samplers.items():
        points = []
        for steps in STEPS:
            counted = Recorder(model)
            x_end = run(sampler, counted, x, grid(steps))[-1].x_next
            points.append((len(counted.calls), rms(x_end - reference)))
        yield name, points


def table(curves: Curves, reference_steps: int = 1000) -> str:
    """As text: a row for each sampler, a column for each number of steps."""
    title = f"distance to {reference_steps} steps"
    rows = [f"{title:22}" + "".join(f"{steps:>9}" for steps in STEPS) + "  steps"]
    for name, points in curves.items():
        rows.append(f"{name:22}" + "".join(f"{error:9.4f}" for _, error in points))
        rows.append(f"{'  network calls':22}" + "".join(f"{calls:9.0f}" for calls, _ in points))
    return "\n".join(rows)
