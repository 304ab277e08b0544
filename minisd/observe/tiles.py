"""Latents as small pictures, without the decoder; pictures as text, for pages."""

import base64
import io
from collections.abc import Iterable

import torch
from PIL import Image, features
from torch import Tensor

from minisd.stable_diffusion import SD1_LATENT_RGB

NO_BIAS = (0.0, 0.0, 0.0)


def latent_image(
    latent: Tensor,
    factors: Iterable[Iterable[float]] = SD1_LATENT_RGB,
    bias: Iterable[float] = NO_BIAS,
) -> Image.Image:
    """(B, 4, h, w) -> its first image, w x h pixels: rgb in [-1, 1] = latent @ factors + bias.

    Truncated to 8 bits, as in the program that drew the seed document's figures.
    """
    rgb = latent[0].float().cpu().permute(1, 2, 0) @ torch.tensor(factors) + torch.tensor(bias)
    values = ((rgb + 1) / 2).clamp(0, 1) * 255  # (h, w, 3)
    return Image.fromarray(values.to(torch.uint8).numpy())


def latent_tile(
    latent: Tensor,
    size: int,
    factors: Iterable[Iterable[float]] = SD1_LATENT_RGB,
    bias: Iterable[float] = NO_BIAS,
) -> Image.Image:
    """latent_image, enlarged by a whole number to about `size` pixels a side."""
    image = latent_image(latent, factors, bias)
    scale = max(1, round(size / max(image.size)))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def data_uri(image: Image.Image, exact: bool) -> str:
    """The picture as a data: URI. `exact` keeps every pixel; without it, WebP may change them."""
    file = io.BytesIO()
    # WebP is smaller, but cannot be larger than this a side.
    kind = "webp" if features.check("webp") and max(image.size) < 16384 else "png"
    if kind == "webp":
        image.save(file, "WEBP", lossless=exact, quality=90 if exact else 85, method=6)
    else:
        image.save(file, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
