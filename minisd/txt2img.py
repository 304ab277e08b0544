"""Text to image: img2img without the image, from noise alone. Read img2img.py first."""

import torch
from torch import Tensor

from minisd.checkpoint import StableDiffusion
from minisd.guidance import guided
from minisd.images import to_pil
from minisd.img2img import (
    Observer,
    Result,
    Sampler,
    Schedule,
    choose,
    draw_noise,
    generator,
    nobody,
    random_stream,
)
from minisd.schedule import check_steps


@torch.inference_mode()
def txt2img(
    sd: StableDiffusion,
    prompt: str | Tensor,
    *,
    width: int | None = None,
    height: int | None = None,
    steps: int = 50,
    sampler: Sampler = "k_lms",
    schedule: Schedule = None,
    guidance: float = 7.5,
    seed: int | None = None,
    negative_prompt: str | Tensor = "",
    noise: Tensor | None = None,
    observe: Observer | None = None,
) -> Result:
    """Draw what `prompt` says, `width` x `height` pixels (None: the model's native size).

    Both must be multiples of `sd.multiple`. All else is as in img2img, whose strength 1 differs in
    that 7 % of the image are left in it; "noised" shows an x0 of zeros, and there is no "encoded".
    """
    observe = observe or nobody
    width, height = width or sd.native_size, height or sd.native_size
    if min(width, height) < 1 or width % sd.multiple or height % sd.multiple:
        sides = f"multiples of {sd.multiple} for this model"
        raise ValueError(f"width and height must be {sides}, not {width}x{height}")
    sample, grid = choose(sampler, schedule)
    sigmas = grid(check_steps(steps))
    rng, seed = generator(seed)

    x0 = torch.zeros(1, 4, height // sd.vae.factor, width // sd.vae.factor, device=sd.device)
    noise = draw_noise(x0, rng, noise)
    x = x0 + sigmas[0] * noise  # there is no picture: noise is all there is
    observe("noised", x0=x0, noise=noise, sigma=sigmas[0], x=x)

    context, uncond = sd.text_states(prompt), sd.text_states(negative_prompt)
    predict_eps = guided(sd.unet, context, uncond, guidance)
    for step in sample(predict_eps, x, sigmas, **random_stream(sample, rng)):
        observe("step", step=step)
        x = step.x_next

    latent = x / (sigmas[-1] ** 2 + 1) ** 0.5
    decoded = sd.vae.decode(latent)
    observe("decoded", image=decoded)
    return Result(to_pil(decoded), latent, seed)
