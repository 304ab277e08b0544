"""Image to image: your picture enters in the middle of the denoising, with the noise due there."""

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
from minisd.images import floor_to_multiple, open_image, to_pil, to_tensor
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
    prompt: str | Tensor,
    image: Image.Image | str | Path,
    *,
    strength: float = 0.75,
    steps: int = 50,
    sampler: Sampler = "k_lms",
    schedule: Schedule = None,
    guidance: float = 7.5,
    seed: int | None = None,
    negative_prompt: str | Tensor = "",
    noise: Tensor | None = None,
    observe: Observer | None = None,
) -> Result:
    """Redraw `image` as `prompt` says. Strength 0 keeps it, 1 ignores it almost.

    prompt, negative_prompt  words, or text states (1, 77, C) as `sd.text_states` gives them
    strength  0..1, how late the schedule is entered: floor(steps * strength) steps are run
    sampler, schedule  names from SAMPLERS and SCHEDULES, or functions of your own; schedule None
              is the sampler's: "ddim" for ddim, "model" for the rest
    seed      0..2^32 - 1; None draws one, and the result names it
    noise     (1, 4, h, w) to put in instead of the seed's own
    observe   a function `observe(name, **values)` that is shown everything and changes nothing:
              "encoded" (x0), "noised" (x0, noise, sigma, x), "step" (step), "decoded" (image)

    Raises ValueError for a value out of range, OSError for a picture that can't be read.
    """
    observe = observe or nobody
    sample, grid = choose(sampler, schedule)
    sigmas = grid(steps)[start_index(steps, strength) :]
    if len(sigmas) == 1:
        sigmas = [
            0.0
        ]  # no step will take noise out, so none is put in (DDIM's grid ends a little above 0)
    rng, seed = generator(seed)

    picture = floor_to_multiple(open_image(image), sd.multiple)
    x0 = sd.vae.encode(to_tensor(picture).to(sd.device))  # (1, 4, h, w)
    observe("encoded", x0=x0)

    noise = draw_noise(x0, rng, noise)
    x = x0 + sigmas[0] * noise  # <<< the noise insertion: as much as the first step is told of
    observe("noised", x0=x0, noise=noise, sigma=sigmas[0], x=x)

    context, uncond = sd.text_states(prompt), sd.text_states(negative_prompt)  # (1, 77, C)
    predict_eps = guided(sd.unet, context, uncond, guidance)
    for step in sample(predict_eps, x, sigmas, **random_stream(sample, rng)):
        observe("step", step=step)
        x = step.x_next

    latent = x / (sigmas[-1] ** 2 + 1) ** 0.5  # to variance 1; the grids other than DDIM's end in 0
    decoded = sd.vae.decode(latent)  # (1, 3, H, W)
    observe("decoded", image=decoded)
    return Result(to_pil(decoded), latent, seed)


def choose(
    sampler: Sampler, schedule: Schedule
) -> tuple[Callable[..., Iterator[Step]], Callable[[int], list[float]]]:
    """The functions behind the names."""
    if schedule is None:
        schedule = "ddim" if sampler == "ddim" else "model"
    for what, name, known in (("sampler", sampler, SAMPLERS), ("schedule", schedule, SCHEDULES)):
        if not callable(name) and name not in known:
            raise ValueError(f"no {what} is named {name!r}; there are {', '.join(known)}")
    return SAMPLERS.get(sampler, sampler), SCHEDULES.get(schedule, schedule)


def generator(seed: int | None) -> tuple[torch.Generator, int]:
    """The image's own random stream, always on the CPU: a seed is one noise on all devices."""
    if seed is None:
        seed = random.SystemRandom().randrange(2**32 - 1)
    if not 0 <= seed < 2**32:  # the generator takes larger ones, and drops what is above 32 bits
        raise ValueError(f"seed must lie between 0 and {2**32 - 1}, not {seed}")
    return torch.Generator("cpu").manual_seed(seed), seed


def draw_noise(x0: Tensor, rng: torch.Generator, given: Tensor | None = None) -> Tensor:
    """The stream's first draw, of x0's shape; taken also where noise is given, so that the samplers
    that draw later never get it."""
    drawn = torch.randn(x0.shape, generator=rng)
    if given is not None and given.shape != drawn.shape:
        raise ValueError(f"noise must be {tuple(drawn.shape)} here, not {tuple(given.shape)}")
    return (drawn if given is None else given).to(x0)


def random_stream(
    sample: Callable[..., Iterator[Step]], rng: torch.Generator
) -> dict[str, torch.Generator]:
    """The stream as an argument, for a sampler that draws noise."""
    return {"generator": rng} if "generator" in inspect.signature(sample).parameters else {}
