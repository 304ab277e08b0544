"""Inpainting: img2img that redraws only where the picture is transparent. Read img2img.py first.

It works with every checkpoint and every sampler. Where the picture is kept, the noise in x is known
and needs no prediction: eps = (x - x0) / sigma. Elsewhere the network predicts it. The network sees
all of x, and the kept part has the same noise level as the rest. (CompVis and InvokeAI put x0 back
with fresh noise at each step. This has the same effect with the run's own noise, so that samplers
with a memory of slopes work too.)
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minisd.guidance import GuidanceRule, Guided
from minisd.images import (
    Picture,
    floor_to_multiple,
    is_transparent,
    open_image,
    resize,
    to_pils,
    to_tensor,
)
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
def inpaint(
    sd: StableDiffusion,
    prompt: str | Tensor,
    image: Picture,
    mask: Picture | None = None,
    *,
    strength: float = 0.75,
    steps: int = 50,
    sampler: str | Sampler = "k_lms",
    schedule: str | Schedule | None = None,
    guidance: float | str | GuidanceRule = 7.5,
    seed: int | Sequence[int] | None = None,
    negative_prompt: str | Tensor = "",
    noise: Tensor | None = None,
    paste: bool = True,
    observe: Observer | None = None,
) -> Result:
    """Redraw the transparent parts of `image`, starting from the colours under the transparency.

    mask   a picture with the proportions of `image`. If it has transparency, opaque is kept and
           transparent is redrawn; if not, white is kept and black is redrawn. Values in between
           blend. None uses the transparency of `image`
    paste  put the kept pixels back bit for bit, and match the redrawn ones next to them. Without
           it the whole picture is as the decoder gives it

    The other arguments are those of img2img. Noised also has keep (1, 1, h, w), and Decoded holds
    the picture before pasting.
    """
    sample, schedule, guidance = choose(sampler, schedule, guidance)
    sigmas = remaining(schedule, steps, strength)
    rngs, seeds = seeded(seed)
    observe = observe or ignore

    picture = floor_to_multiple(open_image(image), sd.multiple)
    alpha = keep_mask(picture, mask).to(sd.device)  # (1, 1, H, W), 1 is kept
    keep = F.avg_pool2d(alpha, sd.vae.factor)  # (1, 1, h, w)
    x0 = encode(sd, picture)
    observe(Encoded(x0))

    noise = draw_noise(x0, rngs, noise)
    x = x0 + sigmas[0] * noise
    observe(Noised(x0, noise, sigmas[0], x, keep))

    context, uncond = sd.text_states(prompt), sd.text_states(negative_prompt)
    predict_eps = Keeping(Guided(sd.unet, context, uncond, guidance), x0, keep)
    for step in sample(predict_eps, x, sigmas, **random_stream(sample, rngs)):
        observe(step)
        x = step.x_next

    latent = x / (sigmas[-1] ** 2 + 1) ** 0.5
    decoded = sd.vae.decode(latent)
    observe(Decoded(decoded))
    images = [paste_back(y, picture, alpha) for y in decoded.split(1)] if paste else None
    return Result(images or to_pils(decoded), latent, seeds)


class Keeping:
    """`predict_eps` with the true noise over x0 where keep is 1, the prediction where it is 0."""

    def __init__(self, guided: Guided, x0: Tensor, keep: Tensor):
        self.guided, self.x0, self.keep = guided, x0, keep

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.blended(self.guided(x, sigma), x, sigma)

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        eps_uncond, eps_cond = self.guided.both(x, sigma)
        return self.blended(eps_uncond, x, sigma), self.blended(eps_cond, x, sigma)

    def blended(self, eps: Tensor, x: Tensor, sigma: float) -> Tensor:
        return self.keep * (x - self.x0) / sigma + (1 - self.keep) * eps


def keep_mask(image: Image.Image, mask: Picture | None) -> Tensor:
    """(1, 1, H, W) at the picture's size: 1 where it is kept, 0 where it is redrawn."""
    if mask is None and not is_transparent(image):
        raise ValueError(
            "there is nothing to inpaint: the image has no transparent part, and no mask is given"
        )
    mask_image = image if mask is None else resize(open_image(mask), image.size)
    band = mask_image.getchannel("A") if is_transparent(mask_image) else mask_image.convert("L")
    return torch.from_numpy(np.asarray(band, dtype=np.float32) / 255)[None, None]


def paste_back(drawn: Tensor, picture: Image.Image, alpha: Tensor) -> Image.Image:
    """The picture over the drawing (1, 3, H, W) by alpha, with the drawing's colours matched to it.

    Decoding changes even what is kept, a little. Near kept pixels that error is known: its local
    mean is subtracted from the drawing too, less and less with the distance, so that no edge shows.
    """
    radius = max(1, min(drawn.shape[2:]) // 16)

    def blurred(x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)
        return x

    original, nearness = to_tensor(picture).to(drawn), blurred(alpha)
    error = blurred(alpha * (original - drawn)) / nearness.clamp(min=1e-3)
    drawn = drawn + error * (2 * nearness).clamp(max=1)
    (image,) = to_pils(alpha * original + (1 - alpha) * drawn)
    opaque = Image.fromarray((alpha[0, 0] == 1).cpu().numpy())
    # Where the picture is opaque, copy it: the arithmetic above may be off by one level of 255.
    image.paste(picture.convert("RGB"), mask=opaque)
    return image
