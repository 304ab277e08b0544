"""`minisd strip PROMPT -I FILE -f 0.7,0.4`: the document's table of what happens at each step.

One run for each strength, step count, sampler or seed, and of each: the image that SD sees at the
insertion, the steps asked and run, the latent at each step, the result. Tiles stand at the step
they show, so that runs of the same count are in line at their right ends; where steps were dropped
it is blank. Rows of tiles:

x       the latent before each step, as the original program drew it: noise saturates it
seen    x / sqrt(sigma^2 + 1), as the network is given it
x0      what the network believes the picture is: x - sigma * eps
eps     the noise that it sees, with guidance
decode  x0 through the decoder, in full (the other rows are a linear map of the four channels)
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from minisd.cli import outputs
from minisd.trace import runs as several
from minisd.trace.sheet import PALE, Cell, column, font, row, table, written

if TYPE_CHECKING:
    from minisd.checkpoint import StableDiffusion
    from minisd.trace.trace import Seen, Trace

ROWS = {
    "x": "latent at each step",
    "seen": "as the network\nsees it",
    "x0": "what it believes\nthe picture is",
    "eps": "the noise\nit sees",
    "decode": "its belief, decoded",
}
SEES = "the image that SD sees"
GAP = 2  # between tiles
BLANK = 3  # tiles at most for dropped steps, where there are many tiles; so did the document
WIDEST = 1500  # pixels; runs that would take more side by side stand one below the other


def configure(parser: argparse.ArgumentParser) -> None:
    several.configure(parser)
    parser.add_argument("--rows", default="x", metavar="ROW,...",
        help=f"which tiles: {', '.join(ROWS)} (x)")  # fmt: skip
    parser.add_argument("--tile", type=int, default=48, metavar="PX", help="size of a tile (48)")
    parser.add_argument("--to", metavar="FILE", help="write the sheet there (a new file in -o)")
    parser.add_argument("--traces", metavar="FOLDER",
        help="also keep what was recorded, for minisd diff")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    rows = args.rows.split(",")
    if unknown := [name for name in rows if name not in ROWS]:
        raise ValueError(f"--rows {unknown[0]}: there are {', '.join(ROWS)}")
    runs = several.settings_of(args)
    prepared = several.prepare(args)
    traces = [recorded(one, prepared, f"{i + 1}/{len(runs)}") for i, one in enumerate(runs)]
    if args.traces:
        save_all(traces, runs, outputs.open_folder(args.traces))
    axes = several.differing(runs) or ["strength" if args.init_img else "steps"]
    titles = [several.said(one, axes) for one in runs]
    drawing = strip_sheet(traces, titles, rows, args.tile, prepared.studio.sd)
    head = several.caption(runs)
    sheet = column([written(head, 12, PALE), drawing], margin=10, gap=0)
    print(saved(sheet, args, f"{runs[0].seed}.strip.png"))
    return 0


def saved(sheet: Image.Image, args: argparse.Namespace, ending: str) -> Path:
    """Write it to the file that --to names, or to a new one in -o."""
    if args.to:
        sheet.save(args.to, optimize=True)
        return Path(args.to)
    folder = outputs.open_folder(args.outdir)
    return outputs.save_png(sheet, folder, f"{outputs.next_prefix(folder):06}.{ending}", {})


def save_all(traces: list["Trace"], runs: list[argparse.Namespace], folder: Path) -> None:
    from minisd.trace.trace import save_trace

    for trace, one in zip(traces, runs):
        strength = f"-f{one.strength:g}" if one.init_img else ""
        name = f"s{one.steps}{strength}-{one.sampler}-S{one.seed}.safetensors"
        print(save_trace(trace, folder / name))


def recorded(one: argparse.Namespace, prepared: several.Prepared, count: str = "") -> "Trace":
    """Make one run, and record it with its settings."""
    from minisd.trace.trace import Trace, model_settings

    studio, picture, size, prompt, negative = prepared
    kept = ("prompt", "init_img", *several.AXES, "schedule", "cfg_scale")
    settings = {name: value for name in kept if (value := getattr(one, name)) is not None}
    trace = Trace(settings | {"asked": one.steps, **model_settings(studio.sd)})
    with trace.watch(studio.sd.unet):
        studio.draw(one, picture, prompt, negative, size, count, trace)
    return trace


# ---- the drawing -------------------------------------------------------------------------------


def strip_sheet(
    traces: list["Trace"],
    titles: list[str],
    rows: list[str],
    tile: int,
    sd: "StableDiffusion | None" = None,
) -> Image.Image:
    """The document's table: a column a run, or a row a run where columns would get too wide."""
    asked = [trace.settings.get("asked", trace.n_steps) for trace in traces]
    side = (traces[0].x[0] if traces[0].steps else traces[0].noised).shape[-1]
    beside = sum(n * (max(1, round(tile / side)) * side + GAP) for n in asked) <= WIDEST
    blank = None if beside else BLANK
    tiles = [[strip(t, what, tile, n, sd, blank) for what in rows] for t, n in zip(traces, asked)]
    large = 3 * max(tile, 40)
    cells: list[list[Cell]] = [["", *titles]]
    if all(trace.encoded is not None for trace in traces):
        cells.append([SEES, *(entry(trace, large, sd) for trace in traces)])
    cells.append(["noise in it, sigma", *(f"{t.noised_sigma or 0:.3f}" for t in traces)])
    cells.append(["steps asked", *map(str, asked)])
    cells.append(["steps run", *(str(trace.n_steps) for trace in traces)])
    for i, what in enumerate(rows):
        cells.append([ROWS[what], *(strips[i] for strips in tiles)])
    cells.append(["result", *(result(trace, large) for trace in traces)])
    if beside:
        return table(cells)
    return table(stacked(cells, len(rows)), align="right")


def entry(trace: "Trace", size: int, sd: "StableDiffusion | None") -> Image.Image:
    """What goes into the network first: the image with its noise, as latent and decoded."""
    from minisd.images import to_pil
    from minisd.trace.tiles import latent_tile

    seen = trace.noised / (trace.noised_sigma**2 + 1) ** 0.5
    latent = latent_tile(trace, seen, size)
    if sd is None:
        return latent
    decoded = to_pil(sd.vae.decode(seen.to(sd.device)))
    return row([latent, decoded.resize(latent.size, Image.Resampling.LANCZOS)], gap=6)


def stacked(cells: list[list[Cell]], n_rows: int) -> list[list[Cell]]:
    """A row a run: its facts as text, the image that SD sees, its strips, the result."""
    by_label = {line[0]: line[1:] for line in cells}
    strips = cells[len(cells) - 1 - n_rows : -1]
    labels = [written(line[0].replace("\n", " "), 11, PALE) for line in strips]
    lines: list[list[Cell]] = []
    for i, title in enumerate(cells[0][1:]):
        facts = f"{title}\nsigma {by_label['noise in it, sigma'][i]}\n"
        facts += f"{by_label['steps run'][i]} of {by_label['steps asked'][i]} steps run"
        named = [centred(label, line[1 + i].height) for label, line in zip(labels, strips)]
        pictures = row(
            [column(named, gap=GAP), column([line[1 + i] for line in strips], gap=GAP)], 8
        )
        seen = by_label.get(SEES)
        lines.append([facts, *([seen[i]] if seen else []), pictures, cells[-1][1 + i]])
    return lines


def centred(label: Image.Image, height: int) -> Image.Image:
    image = Image.new("RGB", (label.width, height), "white")
    image.paste(label, (0, (height - label.height) // 2))
    return image


def strip(
    trace: "Trace",
    what: str,
    tile: int,
    asked: int,
    sd: "StableDiffusion | None" = None,
    blank: int | None = None,
) -> Image.Image:
    """A row of tiles, each at the place of its step; blank where steps were dropped, no wider than
    `blank` tiles."""
    tiles = [one_tile(trace, seen, what, tile, sd) for seen in trace.steps]
    wide, high = (tiles[0].width, tiles[0].height) if tiles else (tile, tile)
    dropped = asked - trace.n_steps
    left = dropped if blank is None else min(dropped, blank)
    n = max(1, left + trace.n_steps)
    image = Image.new("RGB", (n * (wide + GAP) - GAP, high), "white")
    for seen, picture in zip(trace.steps, tiles):
        image.paste(picture, ((left + seen.i) * (wide + GAP), 0))
    if dropped:
        space = left * (wide + GAP) - 2 * GAP
        plural = "step" if dropped == 1 else "steps"
        texts = (f"... {dropped} dropped {plural} ...", f"{dropped} dropped", f"{dropped}")
        draw = ImageDraw.Draw(image)
        for text in texts:
            if draw.textlength(text, font(13)) <= space or text == texts[-1]:
                draw.text((space / 2, high / 2), text, PALE, font(13), anchor="mm")
                break
    return image


def one_tile(
    trace: "Trace", seen: "Seen", what: str, tile: int, sd: "StableDiffusion | None"
) -> Image.Image:
    from minisd.images import to_pil
    from minisd.trace.tiles import latent_tile

    if what != "decode":
        latent = {"x": seen.x, "seen": seen.x_in, "x0": seen.x0, "eps": seen.eps}[what]
        if latent is None:
            raise ValueError(f"the trace has no {what}: it holds x alone")
        return latent_tile(trace, latent, tile, bias=what != "eps")
    if sd is None:
        raise ValueError("decoding needs the model")
    image = to_pil(sd.vae.decode(seen.x0.to(sd.device)))
    like = latent_tile(trace, seen.x, tile)
    return image.resize(like.size, Image.Resampling.LANCZOS)


def result(trace: "Trace", size: int) -> Image.Image | None:
    """The decoded picture, enlarged or reduced to about `size` pixels."""
    from minisd.images import to_pil

    if trace.image is None:
        return None
    image = to_pil(trace.image)
    scale = size / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.LANCZOS)
