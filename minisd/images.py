"""Pictures in and out: Pillow <-> tensors (1, 3, H, W) in [-1, 1]."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def open_image(image: Image.Image | str | Path) -> Image.Image:
    """A picture of any mode, upright (EXIF orientation applied), loaded whole. An animation gives its first frame.

    Raises OSError, for a file that is missing or broken, or ValueError, for one that is too large.
    """
    if not isinstance(image, Image.Image):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(image)
                image.load()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"{image} is too large a picture: {error}") from None
        except (SyntaxError, ValueError, EOFError) as error:  # what Pillow says of some broken files
            raise OSError(f"{image} is a broken picture: {error}") from None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more: Pillow would clip them, not scale
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max(initial=0)))
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB without transparency: the colours that lie under it come to light, nothing is blended."""
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def fit_multiple(width: int, height: int, multiple: int) -> tuple[int, int]:
    """Both sides floored to what the model can process, and at least one such step."""
    return max(multiple, width - width % multiple), max(multiple, height - height % multiple)


def load_image(image: Image.Image | str | Path, multiple: int) -> Tensor:
    """A picture -> (1, 3, H, W) in [-1, 1], sides floored to `multiple` (Lanczos) with a warning that says so."""
    rgb = to_rgb(open_image(image))
    size = fit_multiple(*rgb.size, multiple)
    if size != rgb.size:
        (w, h), (w_old, h_old) = size, rgb.size
        warnings.warn(f"the image is {w_old}x{h_old}; resized to {w}x{h}, multiples of {multiple}", stacklevel=3)
        rgb = rgb.resize(size, Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None]  # (1, 3, H, W) uint8
    return values.float() / 255 * 2 - 1


def to_pil(image: Tensor) -> Image.Image:
    """(1, 3, H, W) about in [-1, 1] -> RGB. 8-bit values are truncated, as CompVis does it; diffusers rounds."""
    values = ((image.float() + 1) / 2).clamp(0, 1) * 255
    return Image.fromarray(values[0].permute(1, 2, 0).to("cpu", torch.uint8).numpy())
