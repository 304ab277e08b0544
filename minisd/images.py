"""Pictures in and out: Pillow <-> tensors (B, 3, H, W) in [-1, 1]."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Picture = Image.Image | str | Path | np.ndarray
OPAQUE = 250  # of 255: a pixel with this alpha or more counts as opaque
# What makes pictures of other kinds 8-bit pictures in sRGB: minisd/pictures/ adds its functions.
CONVERSIONS: list[Callable[[Image.Image], Image.Image]] = []


def open_image(picture: Picture) -> Image.Image:
    """A picture in the colours of sRGB, as RGB, or as RGBA if it can be transparent.

    picture: a Pillow image, a path, or an array (H, W), (H, W, 3) or (H, W, 4), of 8-bit values or
    of floats in 0..1. Of an animation, the first frame. EXIF orientation and colour profile are
    applied. Raises OSError for a file that is missing or broken, ValueError for one that is too
    large and for an array of another form.
    """
    if isinstance(picture, np.ndarray):
        picture = from_array(picture)
    image = picture if isinstance(picture, Image.Image) else read_image(picture)
    image = ImageOps.exif_transpose(image)
    if image.mode == "La":
        image = image.convert("LA")  # Pillow cannot convert La to RGBA directly
    for convert in CONVERSIONS:
        image = convert(image)
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def read_image(path: str | Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(Path(path))
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
        raise ValueError(f"{path} is too large: it has {limit}; scale it down first") from None
    except (SyntaxError, ValueError, EOFError, OSError) as error:
        if getattr(error, "filename", None):  # missing, not permitted, or a folder
            raise
        raise OSError(f"{path} cannot be read as a picture: {error}") from None
    return image


def from_array(values: np.ndarray) -> Image.Image:
    if values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(f"an array must be (H, W), (H, W, 3) or (H, W, 4), not {values.shape}")
    if np.issubdtype(values.dtype, np.floating) and values.min() >= 0 and values.max() <= 1:
        values = (values * 255).round().astype(np.uint8)
    if values.dtype != np.uint8:
        span = f"{values.min()} to {values.max()}"
        raise ValueError(f"an array must hold uint8, or floats in 0..1, not {values.dtype} {span}")
    return Image.fromarray(values)


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel of an RGB or RGBA picture is, at least a little: its alpha is below 250."""
    return image.mode == "RGBA" and bool((np.asarray(image)[..., 3] < OPAQUE).any())


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Lanczos for each colour, so that hidden colours stay; for alpha means, which do not ring."""
    filters = [Image.Resampling.LANCZOS] * 3 + [Image.Resampling.BOX]
    bands = [band.resize(size, kind) for band, kind in zip(image.split(), filters)]
    return Image.merge(image.mode, bands)


def floor_to_multiple(image: Image.Image, multiple: int) -> Image.Image:
    """The picture, resized so that both sides are multiples. A warning says so."""
    (w, h), (w_old, h_old) = (max(multiple, n - n % multiple) for n in image.size), image.size
    if (w, h) == image.size:
        return image
    sizes = f"the image is {w_old}x{h_old}; resized to {w}x{h}"
    warnings.warn(f"{sizes}, multiples of {multiple}", stacklevel=3)
    return resize(image, (w, h))


def to_tensor(image: Image.Image) -> Tensor:
    """(1, 3, H, W) in [-1, 1]. Transparency is dropped, with a warning: hidden colours appear."""
    if is_transparent(image):
        warnings.warn("the picture's transparency is ignored; inpaint would use it", stacklevel=4)
    values = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    return values.float() / 255 * 2 - 1


def to_pils(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W), about in [-1, 1] -> RGB, truncated to 8 bits as CompVis does."""
    if not images.isfinite().all():
        raise ValueError("the picture is not finite (NaN or Inf): load the model as float32?")
    values = ((images.float() + 1) / 2).clamp(0, 1) * 255
    pixels = values.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()  # (B, H, W, 3)
    return [Image.fromarray(rows) for rows in pixels]


def to_pil(image: Tensor) -> Image.Image:
    """(1, 3, H, W), about in [-1, 1] -> RGB."""
    return to_pils(image)[0]
