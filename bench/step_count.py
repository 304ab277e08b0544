"""Does img2img settle as steps are added? And why do 29 steps give another picture than 30?

    python -m bench.step_count FOLDER       # can be interrupted and continued

The seed document says: "Unlike txt2img, adding steps will continuously change the resulting image
and it will not converge". It explains 29 against 30 steps by "a difference in the de-noising
schedule". Here both are measured on the weights that come with minisd, with the document's prompt,
seed and guidance. The init image is docs/pictures/fire-sketch.png, which leaves much open, or
another drawing (--drawing; the document's own is tests/seed/fire-drawing.png). The document's
strength is 0.7. The small model keeps the sketch there, and draws a fire from 0.8 on.

FOLDER gets the pictures and settle.png (docs/pictures has a copy). The text is printed.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from tqdm import tqdm

import minisd
from minisd.figures.chart import chart
from minisd.figures.sheet import column, text_image
from minisd.images import open_image, resize
from minisd.observe.plan import plan
from minisd.recipes import Recipe, prepare
from minisd.schedule import sigma_to_t, t_to_sigma
from minisd.sweeps.axes import combinations
from minisd.sweeps.drawing import BATCH, draw_together, file_name
from minisd.sweeps.metrics import distance

SKETCH = Path(__file__).parent.parent / "docs" / "pictures" / "fire-sketch.png"
STRENGTH = 0.8
SEEDS = [1592514025, 1, 2, 3, 4, 5]
MORE_SEEDS = [*SEEDS, *range(6, 24)]  # for 29 against 30 steps
DENSE = range(10, 42)
PAIRS = [60, 80, 120, 160, 240, 320]  # each of these, and one more
MOST = 640
PRINTED = [10, 15, 20, 25, 29, 30, 35, 40, *PAIRS]
TICKS = [(math.log(n), str(n)) for n in (10, 15, 20, 30, 40, 60, 80, 120, 160, 240, 320)]


def settle(sd: minisd.StableDiffusion, folder: Path, drawing: Path) -> None:
    """How far a picture is from that of one step more, and from that of very many."""
    counts = sorted({*DENSE, *PAIRS, *(n + 1 for n in PAIRS), MOST})
    pairs = [n for n in counts if n + 1 in counts]
    to_next, to_most = [], []
    text = Recipe("fire")
    image = replace(text, image=drawing, fit=True, strength=STRENGTH)
    for name, recipe in {
        "img2img, k_lms": image,
        "txt2img, k_lms": text,
        "img2img, k_euler_a": replace(image, sampler="k_euler_a"),
    }.items():
        pictures = draw_all(sd, recipe, counts, folder / drawing.stem / name.replace(", ", "-"))
        # By count, the distances of all seeds.
        next_distances = {
            n: [distance(pictures[s, n], pictures[s, n + 1]) for s in SEEDS] for n in pairs
        }
        most_distances = {
            n: [distance(pictures[s, n], pictures[s, MOST]) for s in SEEDS] for n in counts[:-1]
        }
        for curves, distances in ((to_next, next_distances), (to_most, most_distances)):
            means = [float(np.mean(values)) for values in distances.values()]
            curves.append((name, [math.log(n) for n in distances], means))
        print(f"\n{name}: RMS of 255 levels, mean (median, worst) of {len(SEEDS)} seeds")
        for n in [n for n in pairs if n in PRINTED]:
            values, mean_to_most = next_distances[n], np.mean(most_distances[n])
            summary = f"{np.mean(values):6.2f} ({median(values):6.2f}, {max(values):6.2f})"
            print(f"  {n:4} to {n + 1:4} steps {summary}   to {MOST}: {mean_to_most:6.2f}")
    first = "From a picture to that of one step more: RMS of 255 levels, mean of six seeds"
    second = f"From a picture to that of {MOST} steps"
    rows = []
    for title, curves in ((first, to_next), (second, to_most)):
        figure = chart(curves, size=(760, 260), x_label="steps asked", x_ticks=TICKS)
        rows += [text_image(title, 14), figure]
    column(rows, margin=10).save(folder / "settle.png")


def draw_all(
    sd: minisd.StableDiffusion, recipe: Recipe, counts: list[int], folder: Path
) -> dict[tuple[int, int], Image.Image]:
    """The pictures of all seeds and step counts, by (seed, steps). Those in the folder are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    first = prepare(replace(recipe, seed=SEEDS[0]), sd)
    recipes = combinations(first.recipe, {"steps": counts, "seed": SEEDS})
    paths = {(each.seed, each.steps): folder / file_name(each) for each in recipes}
    missing = [each for each in recipes if not (folder / file_name(each)).exists()]
    with tqdm(total=len(missing), desc=folder.name) as bar:
        for i in range(0, len(missing), BATCH):
            jobs = [replace(first, recipe=each) for each in missing[i : i + BATCH]]
            for job, result in zip(jobs, draw_together(jobs), strict=True):
                part = folder / "part.png"  # an interrupted run leaves no half picture
                result.image.save(part)
                part.replace(folder / file_name(job.recipe))
            bar.update(len(jobs))
    return {key: Image.open(path).convert("RGB") for key, path in paths.items()}


def two_causes(sd: minisd.StableDiffusion, drawing: Path) -> None:
    """29 steps start at another noise level than 30, and run one step less. Which matters?

    All four combinations, on schedules even in t, as the model's is: another starting level alone,
    another number of steps alone, both.
    """
    image = resize(open_image(drawing), (sd.native_size, sd.native_size))
    plans = {n: plan(n, STRENGTH) for n in (29, 30)}

    def draw(level_of: int, steps_of: int, seed: int) -> Image.Image:
        top = sigma_to_t(plans[level_of].sigma)
        sigmas = [t_to_sigma(t) for t in np.linspace(top, 0, plans[steps_of].steps_run)] + [0.0]
        settings = {"strength": 1, "steps": len(sigmas) - 1, "schedule": lambda _: sigmas}
        return minisd.img2img(sd, "fire", image, seed=seed, **settings).image

    print(f"\n29 against 30 steps, strength {STRENGTH}: distance of the pictures, of 255 levels")
    steps = f"{plans[29].steps_run} steps"
    print(f"        seed     both   level alone ({steps})   count alone (level of 29)")
    rows = []
    for seed in MORE_SEEDS:
        base = draw(29, 29, seed)
        rows.append([distance(base, draw(*of, seed)) for of in ((30, 30), (30, 29), (29, 30))])
        print_distances(str(seed), rows[-1])
    print_distances("mean", np.mean(rows, axis=0))
    print_distances("median", np.median(rows, axis=0))


def print_distances(name: str, distances: list[float] | np.ndarray) -> None:
    both, level, count = distances
    print(f"  {name:>10}  {both:7.1f} {level:24.1f} {count:27.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--drawing", type=Path, default=SKETCH)
    args = parser.parse_args()
    sd = minisd.load()
    args.folder.mkdir(parents=True, exist_ok=True)
    two_causes(sd, args.drawing)
    settle(sd, args.folder, args.drawing)


if __name__ == "__main__":
    main()
