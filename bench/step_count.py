"""Does img2img settle as steps are added? And what makes 29 steps another picture than 30?

    python bench/step_count.py FOLDER       # a quarter of an hour on one core; can be interrupted

The document says: "Unlike txt2img, adding steps will continuously change the resulting image and
it will not converge", and of 29 against 30 steps that this comes of "a difference in the
de-noising schedule". Here both are measured on minisd's own weights, with the document's prompt,
seed, strength and guidance on docs/pictures/fire-sketch.png, which leaves much open, or another
drawing (--drawing; the document's own is tests/seed/fire-drawing.png).

FOLDER gets the pictures, settle.png (a copy is in docs/pictures) and the text that is printed.
"""

import argparse
import math
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

import minisd
from minisd.cli.outputs import open_folder
from minisd.images import open_image, resize
from minisd.img2img import Result
from minisd.schedule import sigma_to_t, t_to_sigma
from minisd.trace import runs as several
from minisd.trace.ledger import plan
from minisd.trace.sheet import column, plot, written
from minisd.trace.sweep import distance, file_name, make

SKETCH = Path(__file__).parent.parent / "docs" / "pictures" / "fire-sketch.png"
SEEDS = [1592514025, 1, 2, 3, 4, 5]
DENSE = range(10, 42)
PAIRS = [60, 80, 120, 160, 240, 320]  # and each of these and one more
MOST = 640


def settle(folder: Path, drawing: Path) -> None:
    """How far a picture is from that of one step more, and from that of very many."""
    counts = sorted({*DENSE, *PAIRS, *(n + 1 for n in PAIRS), MOST})
    next_one, to_most = [], []
    img2img = ["-I", str(drawing), "--fit", "-f", "0.7"]
    kinds = {  # what is drawn, as switches
        "img2img, k_lms": img2img,
        "txt2img, k_lms": [],
        "img2img, k_euler_a": [*img2img, "-A", "k_euler_a"],
    }
    for name, switches in kinds.items():
        parser = argparse.ArgumentParser()
        several.configure(parser)
        seeds, steps = ",".join(map(str, SEEDS)), ",".join(map(str, counts))
        args = parser.parse_args(["fire", "-s", steps, "-S", seeds, *switches])
        runs = several.settings_of(args)
        here = open_folder(folder / name.replace(", ", "-"))
        make(runs, here, several.prepare(args), None)
        pictures = {
            (one.seed, one.steps): Image.open(here / file_name(one)).convert("RGB") for one in runs
        }
        # Each pair of neighbours, over the seeds.
        ns = [n for n in counts if n + 1 in counts]
        apart = [[distance(pictures[s, n], pictures[s, n + 1]) for s in SEEDS] for n in ns]
        next_one.append((name, [math.log(n) for n in ns], [float(np.mean(d)) for d in apart]))
        last = [n for n in counts if n < MOST]
        far = [[distance(pictures[s, n], pictures[s, MOST]) for s in SEEDS] for n in last]
        to_most.append((name, [math.log(n) for n in last], [float(np.mean(d)) for d in far]))
        print(
            f"\n{name}: root mean square of 255 levels, mean (median, worst) of {len(SEEDS)} seeds"
        )
        for n, d, f in zip(ns, apart, [far[last.index(n)] for n in ns]):
            if n in (10, 15, 20, 25, 29, 30, 35, 40, *PAIRS):
                near = f"{np.mean(d):6.2f} ({median(d):6.2f}, {max(d):6.2f})"
                print(f"  {n:4} to {n + 1:4} steps {near}   to {MOST}: {np.mean(f):6.2f}")
    ticks = [(math.log(n), str(n)) for n in (10, 15, 20, 30, 40, 60, 80, 120, 160, 240, 320)]
    charts = [
        written(title, 14)
        if isinstance(title, str)
        else plot(title, size=(760, 260), x_label="steps asked", x_ticks=ticks)
        for title in (
            "From a picture to that of one step more: RMS of 255 levels, mean of six seeds",
            next_one,
            f"From a picture to that of {MOST} steps",
            to_most,
        )
    ]
    column(charts, margin=10).save(folder / "settle.png")


def two_causes(drawing: Path) -> None:
    """29 steps go in at another noise level than 30, and take one step less. Which is it?

    All four combinations, on grids even in t as the model's is: a change of the entry alone, of the
    number of steps alone, of both.
    """
    sd = minisd.load()
    image = resize(open_image(drawing), (sd.native_size, sd.native_size))
    entries = {n: plan(n, 0.7) for n in (29, 30)}

    def drawn(entry: int, run: int, seed: int) -> Result:
        top = sigma_to_t(entries[entry].sigma)
        grid = [t_to_sigma(t) for t in np.linspace(top, 0, entries[run].run)] + [0.0]
        return minisd.img2img(
            sd, "fire", image, strength=1, steps=len(grid) - 1, schedule=lambda _: grid, seed=seed
        )

    print("\n29 against 30 steps, strength 0.7: distance of the pictures, of 255 levels")
    print("        seed     both   entry alone (20 steps)   count alone (entry of 29)")
    columns = []
    for seed in [*SEEDS, *range(6, 24)]:
        a, b, c, d = (
            drawn(*which, seed).image for which in ((29, 29), (30, 30), (30, 29), (29, 30))
        )
        columns.append([distance(a, b), distance(a, c), distance(a, d)])
        print(f"  {seed:10}  {columns[-1][0]:7.1f} {columns[-1][1]:24.1f} {columns[-1][2]:27.1f}")
    means, medians = np.mean(columns, axis=0), np.median(columns, axis=0)
    print(f"  {'mean':>10}  {means[0]:7.1f} {means[1]:24.1f} {means[2]:27.1f}")
    print(f"  {'median':>10}  {medians[0]:7.1f} {medians[1]:24.1f} {medians[2]:27.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--drawing", type=Path, default=SKETCH)
    args = parser.parse_args()
    folder = open_folder(args.folder)
    two_causes(args.drawing)
    settle(folder, args.drawing)
