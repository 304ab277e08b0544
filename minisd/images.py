"""Pictures in and out: Pillow <-> tensors (1, 3, H, W) in [-1, 1]."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def open_image(image: Image.Image | str | Path) -> Image.Image:
    """A picture of any kind as RGB, or RGBA if it can be transparent; EXIF orientation is applied.

    An animation gives its first frame. Raises OSError for a file that is missing or broken,
    ValueError for one that is too large.
    """
    if not isinstance(image, Image.Image):
        path = image
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(path)
                image.load()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            most = Image.MAX_IMAGE_PIXELS
            raise ValueError(f"{path} is too large a picture: over {most:,} pixels") from None
        except (
            SyntaxError,
            ValueError,
            EOFError,
        ) as error:  # what Pillow says of some broken files
            raise OSError(f"{path} is a broken picture: {error}") from None
        except OSError as error:
            if error.filename:  # no such file, no permission, a folder: the message is clear
                raise
            raise OSError(f"{path} is no picture that can be read: {error}") from None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip these to 255, not scale
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max(initial=0)))
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")  # the one way that Pillow has for it
    clear = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    return image.convert("RGBA" if clear else "RGB")


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Lanczos, band by band: Pillow would erase the colours that lie under full transparency."""
    bands = [band.resize(size, Image.Resampling.LANCZOS) for band in image.split()]
    return Image.merge(image.mode, bands)


def floor_to_multiple(image: Image.Image, multiple: int) -> Image.Image:
    """The picture with both sides floored to `multiple`, and at least that; a warning says so."""
    (w, h), (w_old, h_old) = (max(multiple, n - n % multiple) for n in image.size), image.size
    if (w, h) == image.size:
        return image
    said = f"the image is {w_old}x{h_old}; resized to {w}x{h}, multiples of {multiple}"
    warnings.warn(said, stacklevel=3)
    return resize(image, (w, h))


def to_tensor(image: Image.Image) -> Tensor:
    """(1, 3, H, W) in [-1, 1]. Colours under transparency come to light, nothing is blended."""
    values = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    return values.float() / 255 * 2 - 1


def to_pil(image: Tensor) -> Image.Image:
    """(1, 3, H, W) about in [-1, 1] -> RGB, truncated to 8 bits as CompVis does it."""
    values = ((image.float() + 1) / 2).clamp(0, 1) * 255
    return Image.fromarray(values[0].permute(1, 2, 0).to("cpu", torch.uint8).numpy())
