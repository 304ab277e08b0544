"""Grey pictures of 16 or 32 bits."""

import warnings

import numpy as np
from PIL import Image


def to_8_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 or 32 bits as L, or as LA; Pillow alone would clip its values to 255.

    White is 1 for floats and 65535 for whole numbers, or the largest value if that is more. Other
    pictures stay as they are. Warns if nearly all of it becomes black.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    white = max(1 if image.mode == "F" else 65535, values.max(initial=0))
    grey = (values / white * 255).clip(0, 255).astype(np.uint8)
    if values.any() and np.mean(grey < 16) > 0.99:
        span = f"{values.min():g} to {values.max():g}, and {white:g} is white"
        warnings.warn(f"nearly all of the picture is black: its values are {span}", stacklevel=4)
    bands = [Image.fromarray(grey)]
    if "transparency" in image.info:  # the value that stands for transparent pixels
        opaque = values != image.info["transparency"]
        bands.append(Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))
    result = Image.merge("LA" if len(bands) == 2 else "L", bands)
    result.info["icc_profile"] = image.info.get("icc_profile")
    return result
