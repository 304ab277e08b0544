"""The Python lines that draw a recipe's picture again."""

from collections.abc import Mapping
from textwrap import indent
from typing import Any

from minisd.exact_mode import is_exact
from minisd.prompts.syntax import parse
from minisd.recipes import Recipe


def python_lines(recipe: Recipe, load: str = "minisd.load()") -> str:
    """A program that reads the drawing, draws, and writes picture.png.

    load: the expression that loads the model. A prompt with weights or [words to avoid] is drawn
    as a Recipe, because img2img takes prompts literally. Within `minisd.exact()`, so are the lines.
    """
    settings: Mapping[str, Any] = {
        "strength": recipe.strength,
        "steps": recipe.steps,
        "sampler": recipe.sampler,
        "schedule": recipe.schedule,
        "guidance": recipe.guidance,
        "seed": recipe.seed,
    }
    arguments = ", ".join(f"{k}={v!r}" for k, v in settings.items() if v is not None)
    if is_plain(recipe.prompt):
        call = f"minisd.img2img(\n    sd, {recipe.prompt!r}, drawing,\n    {arguments},\n)"
    else:
        call = f"minisd.Recipe(\n    {recipe.prompt!r},\n    {arguments},\n).draw(sd, drawing)"
    draw = f"result = {call}"
    if is_exact():
        draw = f"with minisd.exact():\n{indent(draw, '    ')}"
    imports = ["import torch"] if "torch." in load else []
    return "\n".join(
        [
            *imports,
            "from PIL import Image",
            "",
            "import minisd",
            "",
            f"sd = {load}",
            f'drawing = Image.open("{recipe.image}")',
            draw,
            'result.image.save("picture.png")',
        ]
    )


def is_plain(prompt: str) -> bool:
    """Whether the prompt has none of the syntax of minisd/prompts."""
    (first, *more_parts), negative = parse(prompt)
    return not more_parts and not negative and first.fragments == [(prompt, 1.0)]
