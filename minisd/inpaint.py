"""Inpainting: img2img that redraws only where the picture is transparent. Read img2img.py first.

It works with every checkpoint and every sampler. Where the picture is kept, the noise in x is known
and needs no prediction: eps = (x - x0) / sigma. Elsewhere the network predicts it. The network sees
all of x, and the kept part has the same noise level as the rest. (CompVis and InvokeAI put x0 back
with fresh noise at each step. This has the same effect with the run's own noise, so that samplers
with a memory of slopes work too.)
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from minisd.guidance import GuidanceRule, Guided
from minisd.images import (
    OPAQUE,
    Picture,
    floor_to_multiple,
    is_transparent,
    open_image,
    read_image,
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

FEW = 0.001  # a share of the pixels below which transparency is probably an accident


@torch.inference_mode()
def inpaint(
    sd: StableDiffusion,
    prompt: str | Tensor,
    image: Picture,
    mask: Picture | Tensor | None = None,
    *,
    strength: float = 0.75,
    steps: int = 50,
    sampler: str | Sampler = "k_lms",
    schedule: str | Schedule | None = None,
    guidance: float | str | GuidanceRule = 7.5,
    seed: int | Sequence[int] | None = None,
    negative_prompt: str | Tensor | None = "",
    noise: Tensor | None = None,
    paste: bool = True,
    observe: Observer | None = None,
) -> Result:
    """Redraw the transparent parts of `image`, starting from the colours under the transparency.

    mask   a picture with the proportions of `image`, of any size. If it has transparency, opaque is
           kept and transparent is redrawn; if not, white is kept and black is redrawn. None uses
           the transparency of `image`. `keep_mask` has the exact rules. Or a tensor (1, 1, H, W) of
           the picture's size, as keep_mask gives it
    paste  put the kept pixels back bit for bit, and match the redrawn ones next to them. Without
           it the whole picture is as the decoder gives it

    The other arguments are those of img2img. Noised also has keep (1, 1, h, w), and Decoded holds
    the picture before pasting. Raises ValueError if there is no mask and nothing is transparent.
    """
    sample, schedule, guidance = choose(sampler, schedule, guidance)
    sigmas = remaining(schedule, steps, strength)
    rngs, seeds = seeded(seed)
    observe = observe or ignore

    original = open_image(image)
    picture = floor_to_multiple(original, sd.multiple)
    if isinstance(mask, Tensor):
        alpha = check_mask(mask, picture.size).to(sd.device)
    else:
        alpha = keep_mask(picture, mask, original.size).to(sd.device)
    picture = picture.convert("RGB")
    # alpha is (1, 1, H, W): 1 is kept
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

    def guide(self, eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        return self.blended(self.guided.guide(eps_uncond, eps_cond, x, sigma), x, sigma)

    def blended(self, eps: Tensor, x: Tensor, sigma: float) -> Tensor:
        return self.keep * (x - self.x0) / sigma + (1 - self.keep) * eps


# ---- masks ---------------------------------------------------------------------------------------


def keep_mask(image: Image.Image, mask: Picture | None, original: tuple[int, int]) -> Tensor:
    """(1, 1, H, W) at the picture's size: 1 where it is kept, 0 where it is redrawn.

    1. The mask's alpha decides; without a mask, the picture's own. Opaque is kept. An alpha of 250
       or more, of 255, counts as opaque.
    2. If nothing in the mask is transparent, its brightness decides: white is kept. The same holds
       if less than 0.1 % of it is transparent and its brightness varies.
    3. A mask with two values of brightness has the lower as black and the higher as white.
    4. The mask is resized to the picture by averaging areas.
    5. Then 250 or more, of 255, is kept entirely, and 5 or less is redrawn entirely. Values in
       between act at every step and again at the end, so that they change the picture much less
       than in proportion.

    Warns of what may be a mistake. original: the picture's width and height before it was resized;
    a mask with these proportions fits too. Raises ValueError if there is no mask and nothing is
    transparent.
    """
    hidden = is_transparent(image)
    if mask is None and not hidden:
        problem = "the image has no transparent part, and no mask is given"
        raise ValueError(f"there is nothing to inpaint: {problem}")
    if mask is None and colours_erased(image):
        black = "inpainting starts from plain black or white there"
        advice = "Save it with the colours of transparent pixels kept"
        note = f"the picture has no colours under its transparency: {black}. {advice}"
        warnings.warn(note, stacklevel=3)
    elif mask is not None and hidden:
        note = "the picture's own transparency is ignored, because there is a mask"
        warnings.warn(f"{note}: the colours under it appear", stacklevel=3)
    band = image.getchannel("A") if mask is None else read_mask(mask)
    shapes = [math.log(w / h * band.height / band.width) for w, h in (image.size, original)]
    if mask is not None and min(map(abs, shapes)) > 0.03:
        sizes = f"the mask is {band.width}x{band.height}, the picture {original[0]}x{original[1]}"
        note = f"{sizes}: the mask is stretched, so that other parts may be redrawn than you meant"
        warnings.warn(note, stacklevel=3)
    values = np.asarray(band.resize(image.size, Image.Resampling.BOX), dtype=np.float32)
    values[values >= OPAQUE] = 255
    values[values <= 255 - OPAQUE] = 0
    keep = torch.from_numpy(values / 255)[None, None]
    if note := doubt(keep):
        source = "the picture's transparency" if mask is None else "the mask"
        warnings.warn(f"inpainting by {source}: {note}", stacklevel=3)
    return keep


def read_mask(mask: Picture) -> Image.Image:
    """How much of each pixel is kept, as L at the mask's own size: rules 1 to 3 of keep_mask."""
    if isinstance(mask, np.ndarray):
        mask = np.uint8(255) * mask if mask.dtype == bool else mask
        grey = mask if mask.ndim == 2 else None
    else:
        mask = ImageOps.exif_transpose(mask if isinstance(mask, Image.Image) else read_image(mask))
        is_grey = mask.mode in ("1", "L", "F") or mask.mode.startswith("I")
        grey = np.asarray(mask) if is_grey and "transparency" not in mask.info else None
    if grey is None or len(np.unique(grey)) != 2:
        opened = open_image(mask)
        brightness = opened.convert("L")
        darkest, brightest = brightness.getextrema()
        alpha = np.asarray(opened.convert("RGBA").getchannel("A"))
        share = (alpha < OPAQUE).mean()
        if share >= FEW or (share > 0 and darkest == brightest):
            return opened.getchannel("A")
        if share > 0:
            note = f"{percent(share)} of the mask is transparent: its brightness is used instead"
            warnings.warn(note, stacklevel=4)
        grey = np.asarray(brightness)
    levels = np.unique(grey)
    if len(levels) == 2:
        white = 1 if grey.dtype.kind in "bf" else np.iinfo(grey.dtype).max
        if list(levels) != [0, white]:
            values = f"two values, {levels[0]:g} and {levels[1]:g}"
            note = f"the mask has {values}: they count as black (redrawn) and white (kept)"
            warnings.warn(note, stacklevel=4)
        grey = np.where(grey == levels[1], 255, 0).astype(np.uint8)
    return Image.fromarray(grey)


def colours_erased(image: Image.Image) -> bool:
    """Whether all fully transparent pixels of an RGBA picture are pure black or pure white.

    Some programs erase the colours there. Then inpainting has nothing to start from.
    """
    values = np.asarray(image).reshape(-1, 4)
    sums = values[values[:, 3] == 0, :3].sum(axis=1, dtype=int)
    return len(sums) > 0 and bool(np.isin(sums, (0, 3 * 255)).all())


def share_redrawn(keep: Tensor) -> str:
    """The share of the pixels that are redrawn, at least in part, such as `25.8 %`."""
    return percent((keep < 1).float().mean().item())


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def doubt(keep: Tensor) -> str:
    """Why a mask (1, 1, H, W) may be a mistake; an empty text if nothing suggests it."""
    redrawn, partly = keep < 1, (keep < 1) & (keep > 0)
    if not redrawn.any():
        return "nothing is redrawn"
    if redrawn.float().mean() < FEW:
        return f"only {share_redrawn(keep)} of the picture is redrawn"
    if partly.sum() > redrawn.sum() / 2:
        half = "most of it only in part, which changes it much less than in proportion"
        return f"{share_redrawn(keep)} of the picture is redrawn, {half}"
    return "all of the picture is redrawn" if redrawn.all() else ""


def check_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask itself. Raises ValueError if it is not (1, 1, H, W) of this size, or not 0..1."""
    if mask.shape != (1, 1, *reversed(size)):
        shape = f"(1, 1, {size[1]}, {size[0]}), the picture's size"
        raise ValueError(f"a mask's tensor must have the shape {shape}, not {tuple(mask.shape)}")
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError("a mask's tensor must hold values in 0..1")
    return mask.float()


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
