"""Colours: from those of a picture's ICC profile to sRGB, which the models were trained on."""

import io
import warnings

import numpy as np
from PIL import Image, ImageCms


def to_srgb(image: Image.Image) -> Image.Image:
    """A picture with an ICC profile as RGB or RGBA in sRGB. Alpha stays as it is.

    Phones write Display P3, cameras Adobe RGB, print programs CMYK. A picture without a profile is
    taken for sRGB. A profile that cannot be used is ignored, with a warning. The result holds no
    profile: all programs take such a picture for sRGB, and so no file of minisd's needs one.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    opened = image.convert("RGBA" if image.has_transparency_data else "RGB")
    rgb = converted(image, opened.convert("RGB"), profile)
    merged = Image.merge(opened.mode, [*rgb.split(), *opened.split()[3:]])
    merged.info.pop("icc_profile", None)
    return merged


def converted(image: Image.Image, rgb: Image.Image, profile: bytes) -> Image.Image:
    """The picture as RGB in sRGB. `rgb` is the same picture, with the profile ignored."""
    try:
        source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        is_grey = source.profile.xcolor_space == "GRAY" and image.mode in ("1", "L", "LA")
        colours = rgb.convert("L") if is_grey else image if image.mode == "CMYK" else rgb
        result = ImageCms.profileToProfile(colours, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ImportError) as error:  # Pillow may lack LittleCMS
        warnings.warn(f"the picture's colour profile cannot be used: {error}", stacklevel=5)
        return rgb
    # Profiles of sRGB differ from each other in their rounding. Such a picture keeps its bits.
    difference = np.asarray(result, np.int16) - np.asarray(rgb, np.int16)
    return result if np.abs(difference).max(initial=0) > 1 else rgb
