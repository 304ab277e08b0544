"""Inpainting: img2img that draws only where the picture is transparent. Read img2img.py first.

Any checkpoint can do it, and any sampler: where the picture is to be kept, the noise in x needs no
guessing, since what lies under it is known. So there the sampler is told the truth, eps = (x - x0)
/ sigma, and elsewhere what the network predicts. The network itself sees all of x, the kept part at
the noise level of the rest. (CompVis and InvokeAI put x0 back with fresh noise at each step; this
is the same, with the run's own noise, and it suits samplers that remember slopes.)
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minisd.checkpoint import StableDiffusion
from minisd.guidance import guided
from minisd.images import floor_to_multiple, open_image, resize, to_pil, to_tensor
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
from minisd.samplers import PredictEps
from minisd.schedule import start_index


@torch.inference_mode()
def inpaint(
    sd: StableDiffusion,
    prompt: str | Tensor,
    image: Image.Image | str | Path,
    mask: Image.Image | str | Path | None = None,
    *,
    strength: float = 0.75,
    steps: int = 50,
    sampler: Sampler = "k_lms",
    schedule: Schedule = None,
    guidance: float = 7.5,
    seed: int | None = None,
    negative_prompt: str | Tensor = "",
    noise: Tensor | None = None,
    paste: bool = True,
    observe: Observer | None = None,
) -> Result:
    """Redraw the transparent parts of `image`, from the colours under the transparency.

    `mask` instead of the picture's own transparency: another picture of the same proportions, whose
    transparency counts if it has any, else its brightness: opaque or white is kept, transparent or
    black is redrawn, in between is blended. With `paste`, kept pixels come out bit-identical, and
    the redrawn ones beside them are matched to them; without, all is as the decoder gives it. All
    else is as in img2img; "noised" also has keep (1, 1, h, w), and "decoded" the unpasted image.
    """
    observe = observe or nobody
    sample, grid = choose(sampler, schedule)
    sigmas = grid(steps)[start_index(steps, strength) :]
    if len(sigmas) == 1:
        sigmas = [0.0]
    rng, seed = generator(seed)

    picture = floor_to_multiple(open_image(image), sd.multiple)
    alpha = keep_mask(picture, mask).to(sd.device)  # (1, 1, H, W), 1 is kept
    keep = F.avg_pool2d(alpha, sd.vae.factor)  # (1, 1, h, w)
    x0 = sd.vae.encode(to_tensor(picture).to(sd.device))
    observe("encoded", x0=x0)

    noise = draw_noise(x0, rng, noise)
    x = x0 + sigmas[0] * noise
    observe("noised", x0=x0, noise=noise, sigma=sigmas[0], x=x, keep=keep)

    context, uncond = sd.text_states(prompt), sd.text_states(negative_prompt)
    predict_eps = keeping(guided(sd.unet, context, uncond, guidance), x0, keep)
    for step in sample(predict_eps, x, sigmas, **random_stream(sample, rng)):
        observe("step", step=step)
        x = step.x_next

    latent = x / (sigmas[-1] ** 2 + 1) ** 0.5
    decoded = sd.vae.decode(latent)
    observe("decoded", image=decoded)
    final = paste_back(decoded, picture, alpha) if paste else to_pil(decoded)
    return Result(final, latent, seed)


def keeping(predict_eps: PredictEps, x0: Tensor, keep: Tensor) -> PredictEps:
    """The prediction where keep is 0, the true noise over x0 where it is 1, blended in between."""

    def predict(x: Tensor, sigma: float) -> Tensor:
        return keep * (x - x0) / sigma + (1 - keep) * predict_eps(x, sigma)

    return predict


def keep_mask(image: Image.Image, mask: Image.Image | str | Path | None) -> Tensor:
    """(1, 1, H, W) at the picture's size, 1 where it is kept and 0 where it is redrawn."""
    if mask is None and not is_transparent(image):
        raise ValueError(
            "nothing to inpaint: the image has no transparent part, nor is there a mask"
        )
    mask = image if mask is None else resize(open_image(mask), image.size)
    kept = mask.getchannel("A") if is_transparent(mask) else mask.convert("L")
    return torch.from_numpy(np.asarray(kept, dtype=np.float32) / 255)[None, None]


def is_transparent(image: Image.Image) -> bool:
    """Whether any of an RGB or RGBA picture is."""
    return image.mode == "RGBA" and image.getchannel("A").getextrema()[0] < 255


def colours_erased(image: Image.Image) -> bool:
    """Whether all that lies under full transparency is pure black or pure white, as programs leave
    it that erase colours: then there is nothing for the drawing to start from."""
    values = np.asarray(image.convert("RGBA")).reshape(-1, 4)
    hidden = values[values[:, 3] == 0, :3].sum(axis=1, dtype=int)
    return len(hidden) > 0 and bool(np.isin(hidden, (0, 3 * 255)).all())


def paste_back(drawn: Tensor, picture: Image.Image, alpha: Tensor) -> Image.Image:
    """The picture over the drawing by alpha, the drawing's colours led up to the picture's.

    Decoding changes even what is kept, a little. Where kept pixels are near, that error is known:
    its local mean is taken off the drawing too, fading with the distance, so that no edge shows.
    """
    radius = max(1, min(drawn.shape[2:]) // 16)

    def blurred(x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)
        return x

    original, near = to_tensor(picture).to(drawn), blurred(alpha)
    error = blurred(alpha * (original - drawn)) / near.clamp(min=1e-3)
    drawn = drawn + error * (2 * near).clamp(max=1)
    image = to_pil(alpha * original + (1 - alpha) * drawn)
    opaque = Image.fromarray((alpha[0, 0] == 1).cpu().numpy())
    image.paste(
        picture.convert("RGB"), mask=opaque
    )  # the arithmetic above may be off by one in 255
    return image
