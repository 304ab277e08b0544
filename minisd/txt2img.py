"""Text-to-image: img2img without the image, from noise alone. Read img2img.py first."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minisd.guidance import GuidanceRule, Guided
from minisd.images import to_pils
from minisd.run import (
    Decoded,
    Noised,
    Observer,
    Result,
    choose,
    draw_noise,
    ignore,
    random_stream,
    remaining,
    seeded,
)
from minisd.samplers import Sampler
from minisd.schedule import Schedule
from minisd.stable_diffusion import StableDiffusion


@torch.inference_mode()
def txt2img(
    sd: StableDiffusion,
    prompt: str | Tensor,
    *,
    width: int | None = None,
    height: int | None = None,
    steps: int = 50,
    sampler: str | Sampler = "k_lms",
    schedule: str | Schedule | None = None,
    guidance: float | str | GuidanceRule = 7.5,
    seed: int | Sequence[int] | None = None,
    negative_prompt: str | Tensor | None = "",
    noise: Tensor | None = None,
    observe: Observer | None = None,
) -> Result:
    """Draw what `prompt` says, `width` x `height` pixels. None is the model's native size.

    Both must be multiples of `sd.multiple`. The other arguments are those of img2img. There is no
    Encoded event, and Noised has an x0 of zeros. (img2img at strength 1 is not quite the same: 7 %
    of the image's amplitude remain.)
    """
    width, height = (sd.native_size if side is None else side for side in (width, height))
    if min(width, height) < 1 or width % sd.multiple or height % sd.multiple:
        sides = f"multiples of {sd.multiple} for this model"
        raise ValueError(f"width and height must be {sides}, not {width}x{height}")
    sample, schedule, guidance = choose(sampler, schedule, guidance)
    sigmas = remaining(schedule, steps)
    rngs, seeds = seeded(seed)
    observe = observe or ignore

    x0 = torch.zeros(1, 4, height // sd.vae.factor, width // sd.vae.factor, device=sd.device)
    noise = draw_noise(x0, rngs, noise)
    x = x0 + sigmas[0] * noise  # there is no picture, only noise
    observe(Noised(x0, noise, sigmas[0], x))

    context, uncond = sd.text_states(prompt), sd.text_states(negative_prompt)
    predict_eps = Guided(sd.unet, context, uncond, guidance)
    for step in sample(predict_eps, x, sigmas, **random_stream(sample, rngs)):
        observe(step)
        x = step.x_next

    latent = x / (sigmas[-1] ** 2 + 1) ** 0.5
    decoded = sd.vae.decode(latent)
    observe(Decoded(decoded))
    return Result(to_pils(decoded), latent, seeds)
