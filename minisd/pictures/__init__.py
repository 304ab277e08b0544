"""Pictures of other kinds, as pictures of 8 bits in sRGB: colour profiles, 16 and 32 bits."""

from PIL import PngImagePlugin

from minisd.pictures.colours import to_srgb
from minisd.pictures.deep import to_8_bits

CONVERSIONS = [to_8_bits, to_srgb]  # in this order: a picture of 16 bits may have a profile

# Pillow reads a PNG with 64 MB of text, but refuses it if 1 MB is in one piece. The workflows that
# ComfyUI stores are often longer, and so are some colour profiles.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
