"""Text to image: img2img without the image, from noise alone. Read img2img.py first; here is what differs."""

import torch

from minisd.checkpoint import StableDiffusion
from minisd.guidance import guided
from minisd.images import to_pil
from minisd.img2img import Observer, Result, Sampler, Schedule, choose, generator, nobody, random_stream
from minisd.schedule import check_steps


@torch.inference_mode()
def txt2img(
    sd: StableDiffusion,
    prompt: str,
    *,
    width: int | None = None,
    height: int | None = None,
    steps: int = 50,
    sampler: Sampler = "k_lms",
    schedule: Schedule = None,
    guidance: float = 7.5,
    seed: int | None = None,
    negative_prompt: str = "",
    observe: Observer | None = None,
) -> Result:
    """Draw what `prompt` says, `width` x `height` pixels (None: the model's native size).

    Both sides must be multiples of `sd.multiple`. The rest is as in img2img, whose strength 1 is this with
    7 % of the image left in it; the observer sees no "encoded", and x0 as zeros in "noised".
    """
    width, height = width or sd.native_size, height or sd.native_size
    if width < 1 or height < 1 or width % sd.multiple or height % sd.multiple:
        raise ValueError(f"width and height must be multiples of {sd.multiple} for this model, not {width}x{height}")
    observe = observe or nobody
    sample, grid = choose(sampler, schedule)
    sigmas = grid(check_steps(steps))
    rng, seed = generator(seed)

    x0 = torch.zeros(1, 4, height // sd.vae.factor, width // sd.vae.factor, device=sd.device)  # no picture
    noise = torch.randn(x0.shape, generator=rng).to(x0)
    x = x0 + sigmas[0] * noise
    observe("noised", x0=x0, noise=noise, sigma=sigmas[0], x=x)

    context, uncond = sd.text_states([prompt, negative_prompt]).chunk(2)
    predict_eps = guided(sd.unet, context, uncond, guidance)
    for step in sample(predict_eps, x, sigmas, **random_stream(sample, rng)):
        observe("step", step=step)
        x = step.x_next

    latent = x / (sigmas[-1] ** 2 + 1) ** 0.5
    decoded = sd.vae.decode(latent)
    observe("decoded", image=decoded)
    return Result(to_pil(decoded), latent, seed)
