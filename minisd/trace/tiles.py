"""Latents as small pictures."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from minisd.trace.trace import Trace

# Latent -> RGB in [-1, 1] for SD 1.4, by keturn: what the document's figures were drawn with.
SD1 = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)
NO_BIAS = (0.0, 0.0, 0.0)


def latent_image(
    latent: Tensor, factors: Iterable[Iterable[float]] = SD1, bias: Iterable[float] = NO_BIAS
) -> Image.Image:
    """(B, 4, h, w) -> its first image, w x h pixels: rgb in [-1, 1] = latent @ factors + bias,
    truncated to 8 bits, as the program that drew the document's figures did."""
    rgb = latent[0].float().cpu().permute(1, 2, 0) @ torch.tensor(factors) + torch.tensor(bias)
    values = ((rgb + 1) / 2).clamp(0, 1) * 255  # (h, w, 3)
    return Image.fromarray(values.to(torch.uint8).numpy())


def latent_tile(trace: "Trace", latent: Tensor, size: int, bias: bool = True) -> Image.Image:
    """A latent by the trace's own factors, enlarged a whole number of times to about `size` pixels
    a side. Without the bias, zero is grey: for eps, which is no picture."""
    offset = trace.settings.get("latent_rgb_bias", NO_BIAS) if bias else NO_BIAS
    image = latent_image(latent, trace.settings.get("latent_rgb", SD1), offset)
    scale = max(1, round(size / max(image.size)))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
