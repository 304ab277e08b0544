"""Contact sheets: many pictures as one."""

from collections.abc import Sequence

from PIL import Image

from minisd.figures.sheet import CENTRE, PALE, Cell, column, mosaic, table, text_image
from minisd.recipes.recipe import Recipe
from minisd.sweeps.axes import AXES, caption, describe, differing


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures in rows, in as square a shape as possible, without labels."""
    columns = max(1, round(len(images) ** 0.5))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    return mosaic(rows, background="black")


def sweep_sheet(
    recipes: Sequence[Recipe],
    images: Sequence[Image.Image],
    init_image: Image.Image | None,
    tile: int,
) -> Image.Image:
    """All pictures of a sweep, labelled. `tile` is a picture's longer side in pixels.

    Across: the first axis along which the recipes differ. Down: the other axes together.
    """
    across, *down = differing(recipes) or AXES[1:2]
    heads = list(dict.fromkeys(describe(recipe, [across]) for recipe in recipes))
    rows: dict[str, list[Cell]] = {}
    for recipe, image in zip(recipes, images, strict=True):
        label = "\n".join(describe(recipe, [axis]) for axis in down)
        cells = rows.setdefault(label, [None] * len(heads))
        cells[heads.index(describe(recipe, [across]))] = resized(image, tile)
    corner = "" if init_image is None else resized(init_image, tile)
    lines: list[list[Cell]] = [[corner, *heads]]
    lines += [[label, *cells] for label, cells in rows.items()]
    title = text_image(caption(recipes), 12, PALE)
    return column([title, table(lines, x=CENTRE)], gap=0, margin=10)


def resized(image: Image.Image, tile: int) -> Image.Image:
    scale = tile / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
