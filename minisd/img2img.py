"""Image-to-image: noise is added to your picture, and the denoising starts partway through."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minisd.guidance import GuidanceRule, Guided
from minisd.images import Picture, to_pils
from minisd.run import (
    Decoded,
    Encoded,
    Noised,
    Observer,
    Result,
    choose,
    draw_noise,
    encode,
    ignore,
    random_stream,
    remaining,
    seeded,
)
from minisd.samplers import Sampler
from minisd.schedule import Schedule
from minisd.stable_diffusion import StableDiffusion


@torch.inference_mode()
def img2img(
    sd: StableDiffusion,
    prompt: str | Tensor,
    image: Picture | Tensor,
    *,
    strength: float = 0.75,
    steps: int = 50,
    sampler: str | Sampler = "k_lms",
    schedule: str | Schedule | None = None,
    guidance: float | str | GuidanceRule = 7.5,
    seed: int | Sequence[int] | None = None,
    negative_prompt: str | Tensor | None = "",
    noise: Tensor | None = None,
    observe: Observer | None = None,
) -> Result:
    """Redraw `image` as `prompt` says. Strength 0 keeps it, strength 1 almost ignores it.

    prompt, negative_prompt  words, or text states (1, 77, C) as `sd.text_states` gives them
    image     a picture (PIL, path, or numpy array), or a latent (1, 4, h, w) as vae.encode gives it
    strength  0..1; floor(steps * strength) steps are run, the ones before them are skipped
    sampler, schedule  a name from SAMPLERS or SCHEDULES, FILE.py:FUNCTION, or a function. The
              default schedule is "ddim" for the sampler "ddim" and "model" for all others
    guidance  a number, or a rule (eps_uncond, eps_cond, x, sigma) -> eps
    seed      0 to 2^32 - 1, or a list of them: one picture each, drawn as one batch. None draws a
              seed, and the result names it
    noise     (1, 4, h, w) or (B, 4, h, w), used instead of the seed's own
    observe   a function that is called with each event: Encoded, Noised, Step, Decoded

    Raises ValueError for a value out of range, OSError for a picture that cannot be read.
    """
    sample, schedule, guidance = choose(sampler, schedule, guidance)
    sigmas = remaining(schedule, steps, strength)
    rngs, seeds = seeded(seed)
    observe = observe or ignore

    x0 = encode(sd, image)  # (1, 4, h, w)
    observe(Encoded(x0))

    noise = draw_noise(x0, rngs, noise)  # (B, 4, h, w)
    x = x0 + sigmas[0] * noise  # <<< the noise insertion: exactly the level the first step expects
    observe(Noised(x0, noise, sigmas[0], x))

    context, uncond = sd.text_states(prompt), sd.text_states(negative_prompt)  # (1, 77, C)
    predict_eps = Guided(sd.unet, context, uncond, guidance)
    for step in sample(predict_eps, x, sigmas, **random_stream(sample, rngs)):
        observe(step)
        x = step.x_next

    # Back to variance 1. The ddim schedule ends slightly above 0; all others end at 0.
    latent = x / (sigmas[-1] ** 2 + 1) ** 0.5
    decoded = sd.vae.decode(latent)  # (B, 3, H, W)
    observe(Decoded(decoded))
    return Result(to_pils(decoded), latent, seeds)
