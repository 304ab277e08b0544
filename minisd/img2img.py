"""Image to image: put your picture into the middle of the denoising, with just the noise that belongs there."""

import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from minisd.checkpoint import StableDiffusion
from minisd.guidance import guided
from minisd.images import load_image, to_pil
from minisd.samplers import SAMPLERS, Step
from minisd.schedule import SCHEDULES, start_index

Observer = Callable[..., None]
Sampler = str | Callable[..., Iterator[Step]]
Schedule = str | Callable[[int], list[float]] | None


@dataclass
class Result:
    image: Image.Image
    latent: Tensor  # (1, 4, h, w), the final latent, as vae.encode scales it
    seed: int


def nobody(name: str, **values: object) -> None:
    """The observer that does nothing."""


@torch.inference_mode()
def img2img(
    sd: StableDiffusion,
    prompt: str,
    image: Image.Image | str | Path,
    *,
    strength: float = 0.75,
    steps: int = 50,
    sampler: Sampler = "k_lms",
    schedule: Schedule = None,
    guidance: float = 7.5,
    seed: int | None = None,
    negative_prompt: str = "",
    observe: Observer | None = None,
) -> Result:
    """Redraw `image` as `prompt` says: strength 0 keeps it, 1 ignores it almost, and needs the more steps.

    `sampler` and `schedule` are names from SAMPLERS and SCHEDULES, or functions of your own; schedule None is the
    sampler's own. seed None draws one, which the result names. `observe(name, **values)` is shown everything:
    "encoded" (x0), "noised" (x0, noise, sigma, x), "step" (step), "decoded" (image (1, 3, H, W)), and changes nothing.
    Raises ValueError for values out of range, OSError for a picture that can't be read.
    """
    observe = observe or nobody
    sample, grid = choose(sampler, schedule)
    sigmas = grid(steps)[start_index(steps, strength) :]
    if len(sigmas) == 1:
        sigmas = [0.0]  # no step will take noise out, so none is put in (DDIM's grid ends a little above 0)
    rng, seed = generator(seed)

    x0 = sd.vae.encode(load_image(image, sd.multiple).to(sd.device))  # (1, 4, h, w)
    observe("encoded", x0=x0)

    noise = torch.randn(x0.shape, generator=rng).to(x0)
    x = x0 + sigmas[0] * noise  # <<< the noise insertion: as much as the first step will be told of
    observe("noised", x0=x0, noise=noise, sigma=sigmas[0], x=x)

    context, uncond = sd.text_states([prompt, negative_prompt]).chunk(2)  # (1, 77, C) each
    predict_eps = guided(sd.unet, context, uncond, guidance)
    for step in sample(predict_eps, x, sigmas, **random_stream(sample, rng)):
        observe("step", step=step)
        x = step.x_next

    latent = x / (sigmas[-1] ** 2 + 1) ** 0.5  # to variance 1; the grids other than DDIM's end in 0
    decoded = sd.vae.decode(latent)  # (1, 3, H, W)
    observe("decoded", image=decoded)
    return Result(to_pil(decoded), latent, seed)


def choose(sampler: Sampler, schedule: Schedule) -> tuple[Callable[..., Iterator[Step]], Callable[[int], list[float]]]:
    """The functions behind the names. A schedule of None is "ddim" for ddim and "model" for all others."""
    if schedule is None:
        schedule = "ddim" if sampler == "ddim" else "model"
    for what, name, known in (("sampler", sampler, SAMPLERS), ("schedule", schedule, SCHEDULES)):
        if not callable(name) and name not in known:
            raise ValueError(f"no {what} is named {name!r}; there are {', '.join(known)}")
    return SAMPLERS.get(sampler, sampler), SCHEDULES.get(schedule, schedule)


def generator(seed: int | None) -> tuple[torch.Generator, int]:
    """The image's own random stream, always on the CPU: a seed means the same noise on every device."""
    if seed is None:
        seed = random.SystemRandom().randrange(2**32 - 1)
    if not 0 <= seed < 2**32:  # the generator takes larger ones, and drops what is above 32 bits
        raise ValueError(f"seed must lie between 0 and {2**32 - 1}, not {seed}")
    return torch.Generator("cpu").manual_seed(seed), seed


def random_stream(sample: Callable[..., Iterator[Step]], rng: torch.Generator) -> dict[str, torch.Generator]:
    """The stream as an argument, for a sampler that draws noise."""
    return {"generator": rng} if "generator" in inspect.signature(sample).parameters else {}
