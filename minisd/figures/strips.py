"""Strips: what happens at each step of a run, as rows of tiles; and a sheet of several runs.

A strip has a place for each step asked. The tiles of the steps run are at its right end, so that
runs of the same step count are aligned; the places of skipped steps are blank. There are five rows:

x       the latent before each step, as the seed document's program drew it: noise saturates it
seen    x / sqrt(sigma^2 + 1), as it is passed to the network
x0      the clean latent as predicted: x - sigma * eps
eps     the predicted noise, after guidance
decode  x0 through the decoder (the other rows are a linear map of the latent's four channels)
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from minisd.figures.sheet import (
    CENTRE,
    END,
    PALE,
    Cell,
    column,
    font,
    padded,
    row,
    table,
    text_image,
)
from minisd.images import to_pils
from minisd.observe.trace import Trace, TracedStep
from minisd.stable_diffusion import StableDiffusion

ROWS = {
    "x": "latent x\nbefore each step",
    "seen": "x as passed to\nthe network",
    "x0": "clean latent x0,\nas predicted",
    "eps": "noise eps,\nas predicted",
    "decode": "x0, decoded",
}
START_LABEL = "init image\nwith noise"
GAP = 2  # pixels between tiles
BLANK = 3  # tiles at most for skipped steps, if there are many tiles; as in the seed document
WIDEST = 1500  # pixels; runs that would take more side by side are stacked


def strip_sheet(
    traces: Sequence[Trace],
    titles: Sequence[str],
    rows: Sequence[str],
    tile: int,
    sd: StableDiffusion | None = None,
) -> Image.Image:
    """The seed document's table, for runs of one size. `tile` is a tile's side in pixels, about.

    A column for each run; or a row for each, if columns would be too wide.
    """
    asked = [steps_asked(trace) for trace in traces]
    latent = traces[0].noised if traces[0].noised is not None else traces[0].x[0]
    tile_width = max(1, round(tile / latent.shape[-1])) * latent.shape[-1] + GAP
    in_columns = sum(asked) * tile_width <= WIDEST
    blank = None if in_columns else BLANK
    large = 3 * max(tile, 40)
    strips = [[strip(trace, name, tile, sd, blank) for name in rows] for trace in traces]
    starts: list[Cell] = []  # txt2img has no image to start from
    if all(trace.encoded is not None for trace in traces):
        starts = [start_image(trace, large, sd) for trace in traces]
    results = [result_image(trace, large) for trace in traces]
    sigmas = [f"{trace.noised_sigma or 0:.3f}" for trace in traces]
    run = [str(trace.n_steps) for trace in traces]
    labels = [ROWS[name] for name in rows]
    if in_columns:
        lines: list[list[Cell]] = [["", *titles]]
        if starts:
            lines.append([START_LABEL, *starts])
        lines.append(["noise added, sigma", *sigmas])
        lines.append(["steps asked", *map(str, asked)])
        lines.append(["steps run", *run])
        for i, label in enumerate(labels):
            lines.append([label, *(tiles[i] for tiles in strips)])
        return table([*lines, ["result", *results]])
    lines = []
    for i, title in enumerate(titles):
        facts = f"{title}\nsigma {sigmas[i]}\n{run[i]} of {asked[i]} steps run"
        names = [text_image(label.replace("\n", " "), 11, PALE) for label in labels]
        heights = [image.height for image in strips[i]]
        names = [padded(name, height=h, y=CENTRE) for name, h in zip(names, heights, strict=True)]
        pictures = row([column(names, gap=GAP), column(strips[i], gap=GAP)], gap=8)
        lines.append([facts, *starts[i : i + 1], pictures, results[i]])
    return table(lines, x=END)


def steps_asked(trace: Trace) -> int:
    return trace.settings.get("steps", trace.n_steps)


def strip(
    trace: Trace,
    name: str,
    tile: int,
    sd: StableDiffusion | None = None,
    blank: int | None = None,
) -> Image.Image:
    """One row of tiles. The skipped steps take no more than `blank` places."""
    tiles = [step_tile(trace, step, name, tile, sd) for step in trace.steps]
    size = tiles[0].size if tiles else (tile, tile)
    skipped = steps_asked(trace) - trace.n_steps
    left = skipped if blank is None else min(skipped, blank)
    cells = [Image.new("RGB", size, "white")] * max(1, left + trace.n_steps)
    for step, image in zip(trace.steps, tiles, strict=True):
        cells[left + step.i] = image
    joined = row(cells, GAP)
    if left:
        space = left * (size[0] + GAP) - 2 * GAP
        plural = "step" if skipped == 1 else "steps"
        texts = (f"... {skipped} skipped {plural} ...", f"{skipped} skipped", f"{skipped}")
        draw = ImageDraw.Draw(joined)
        fitting = [text for text in texts if draw.textlength(text, font(13)) <= space]
        text = (fitting or texts[-1:])[0]
        draw.text((space / 2, size[1] / 2), text, PALE, font(13), anchor="mm")
    return joined


def step_tile(
    trace: Trace, step: TracedStep, name: str, tile: int, sd: StableDiffusion | None
) -> Image.Image:
    latents = {"x": step.x, "seen": step.x_in, "x0": step.x0, "eps": step.eps, "decode": step.x0}
    latent = latents[name]
    if latent is None:
        raise ValueError(f"the trace has no {name}: it holds only x")
    if name != "decode":
        return trace.tile(latent, tile, bias=name != "eps")
    if sd is None:
        raise ValueError("the row decode needs the model")
    (image,) = to_pils(sd.vae.decode(latent[:1].to(sd.device)))
    return image.resize(trace.tile(latent, tile).size, Image.Resampling.LANCZOS)


def start_image(trace: Trace, size: int, sd: StableDiffusion | None) -> Image.Image:
    """The network's first input, the image with its noise: as latent, and decoded."""
    assert trace.noised is not None and trace.noised_sigma is not None
    x_in = trace.noised / (trace.noised_sigma**2 + 1) ** 0.5
    latent = trace.tile(x_in, size)
    if sd is None:
        return latent
    (decoded,) = to_pils(sd.vae.decode(x_in[:1].to(sd.device)))
    return row([latent, decoded.resize(latent.size, Image.Resampling.LANCZOS)], gap=6)


def result_image(trace: Trace, size: int) -> Image.Image | None:
    """The decoded picture (of a batch, the first), resized to about `size` pixels."""
    if trace.image is None:
        return None
    (image,) = to_pils(trace.image[:1])
    scale = size / max(image.size)
    sides = round(image.width * scale), round(image.height * scale)
    return image.resize(sides, Image.Resampling.LANCZOS)
