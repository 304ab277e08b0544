"""What the studio's page asks for, read with care: names from tables, numbers within limits."""

import base64
import io
import warnings
from collections.abc import Mapping
from typing import Any
from unicodedata import category

from PIL import Image

from minisd.prompts.syntax import parse
from minisd.recipes import Recipe
from minisd.samplers import SAMPLERS
from minisd.schedule import SCHEDULES

DRAWING = "drawing.png"  # the name of the init image in recipes, commands and Python lines
MAX_PROMPT = 1000  # characters
RANGES: Mapping[str, tuple[type, float, float]] = {
    "strength": (float, 0, 1),
    "steps": (int, 1, 100),
    "guidance": (float, 0, 30),
    "seed": (int, 0, 2**32 - 1),
}


def choices() -> dict[str, list[str]]:
    """The samplers and schedules that the page offers; `file` is for checkpoints with their own."""
    schedules = [name for name in SCHEDULES if name != "file"]
    return {"sampler": [*SAMPLERS], "schedule": schedules}


def read_settings(values: Any) -> Recipe:
    """The recipe of a page's settings. Raises ValueError with one clear line.

    The page chooses names from the tables only. FILE.py:FUNCTION, which would run a file, is for
    the command line.
    """
    if not isinstance(values, dict):
        raise ValueError("the settings must be a JSON object")
    fields: dict[str, Any] = {}
    for name, (kind, low, high) in RANGES.items():
        value = values.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or kind(value) != value:
            noun = "a whole number" if kind is int else "a number"
            raise ValueError(f"{name} must be {noun} from {low} to {high}")
        fields[name] = kind(value)
    for name, table in choices().items():
        value = values.get(name)
        if value not in table and not (name == "schedule" and value == ""):
            raise ValueError(f"{name} must be one of {', '.join(table)}")
        fields[name] = value or None
    prompt = values.get("prompt")
    is_text = isinstance(prompt, str) and len(prompt) <= MAX_PROMPT
    if not is_text or any(category(char) in ("Cc", "Cs") for char in prompt):  # control, surrogate
        raise ValueError(f"the prompt must be one line of at most {MAX_PROMPT} characters")
    parse(prompt)
    return Recipe(prompt, image=DRAWING, **fields)


def read_drawing(text: Any, side: int) -> Image.Image:
    """The drawing of a page, a PNG file in base64: RGB, `side` pixels wide and high.

    Its size is checked before it is decoded. The result is a new picture: it has none of the file's
    texts and profiles. Raises ValueError with one clear line.
    """
    drawing, size = None, (0, 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of sizes that are refused below
            data = base64.b64decode(text, validate=True)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                size = image.size
                if size == (side, side):
                    drawn = image.convert("RGBA")
                    drawing = Image.new("RGB", size, "white")
                    drawing.paste(drawn, mask=drawn.getchannel("A"))
    except Exception:  # broken files raise errors of many kinds
        raise ValueError("the drawing cannot be read: it is not a whole PNG file") from None
    if drawing is None:
        w, h = size
        raise ValueError(f"the drawing must be {side}x{side} pixels, not {w}x{h}")
    return drawing
