"""How good is a weights file? Numbers, sheets of pictures, and a table for a model card.

    python -m weights.train.evaluate [FILE] --out DIR         # everything: over an hour on a CPU
    python -m weights.train.evaluate [FILE] --out DIR --labels 20 --drawings 8    # a small part

autoencoder   PSNR and SSIM of held-out pictures, on white and as augmented. A sheet shows the
              originals above their reconstructions.
captions      300 labels in each main style, and every held-out pair, drawn four times each with the
              prompt `LABEL, STYLE`. Does the nearest training picture have the label (features.py)?
              Trained and held-out pairs are counted separately. Real held-out pictures give the
              ceiling.
prompts       A sheet of the prompts in prompts.txt, which were written before there was a model.
img2img       Line drawings of a style that was never trained on, with their own label as prompt.
              Does the distance to the drawing grow with strength? Do edges stay in place at 0.4?
              Is the subject right at 0.7? With another label: does it become that?
fire          The seed document's drawing at all strengths.
low noise     The error of x0 on coloured drawings (drawings/), over that on held-out emoji in
              colour. The prompt is the thing's name; without guidance; mean square of latents.
dial          Those drawings, line drawings and the document's fireplace at all strengths, with the
              thing's name as prompt. How much stays at 0.2 and 0.3? Does the distance to the
              drawing rise evenly? How many results are neither the drawing nor the thing?

Labels and drawings are chosen by checksum, and seeds count from 0, so a second evaluation gives the
same results.
"""

import argparse
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import minisd
from minisd.guidance import Guided
from minisd.images import open_image, resize, to_tensor
from minisd.run import choose, draw_noise, random_stream, remaining, seeded
from minisd.schedule import ABAR
from weights.train import data
from weights.train.autoencoder import reconstructions
from weights.train.export import training_facts
from weights.train.features import Space, features
from weights.train.pictures import on_white, plain_and_augmented, sheet
from weights.train.profiles import PROFILES

MAIN = ("fluent 3d", "fluent color", "fluent flat", "noto", "fluent mono")
STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DIAL = (*STRENGTHS, 1.0)
FIRE = Path(__file__).resolve().parents[2] / "tests" / "seed" / "fire-drawing.png"
DRAWINGS = Path(__file__).parent / "drawings"
HELD_EMOJI = 24  # emoji in colour that the drawings are compared with
LOW_NOISE, NOISES = (100, 300, 450), 3  # timesteps, and noises for each picture


# ---- drawing many pictures at once ---------------------------------------------------------------


@torch.inference_mode()
def generate(
    sd: minisd.StableDiffusion,
    prompts: list[str],
    settings: argparse.Namespace,
    images: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """(N, 3, S, S) in 0..1: a picture for each prompt; prompt i has seed i.

    images: init images (N, 3, S, S) in [-1, 1], for img2img; without them it is txt2img. A call of
    minisd.img2img takes one prompt and one init image, and here each picture of a batch has its
    own. So this is img2img's loop once more, from the same functions.
    """
    sample, schedule, guidance = choose(settings.sampler, None, settings.guidance)
    sigmas = remaining(schedule, settings.steps, strength)
    side = sd.native_size // sd.vae.factor
    states = {text: sd.text_states(text) for text in ["", *prompts]}
    batches = []
    for start in range(0, len(prompts), settings.batch):
        numbers = range(start, min(start + settings.batch, len(prompts)))
        x0 = torch.zeros(len(numbers), 4, side, side, device=sd.device)
        if images is not None:
            x0 = sd.vae.encode(images[start : numbers.stop].to(sd.device))
        rngs, _ = seeded(numbers)
        x = x0 + sigmas[0] * draw_noise(x0, rngs)
        context = torch.cat([states[prompts[i]] for i in numbers])
        predict_eps = Guided(sd.unet, context, states[""], guidance)
        for step in sample(predict_eps, x, sigmas, **random_stream(sample, rngs)):
            x = step.x_next
        latent = x / (sigmas[-1] ** 2 + 1) ** 0.5
        batches.append((sd.vae.decode(latent).clamp(-1, 1) + 1) / 2)
    return torch.cat(batches)


# ---- measures ------------------------------------------------------------------------------------


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(B,) in dB, for pictures in 0..1."""
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)).clamp(min=1e-8))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(B,), Wang et al. 2004: a Gaussian window of 11 pixels and sigma 1.5, for each colour."""
    line = torch.exp(-((torch.arange(11.0, device=a.device) - 5) ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 11, 11)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=3)

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    ratio = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return ratio.mean((1, 2, 3))


def edges(image: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B, 256): the strength of edges in each of 16x16 cells."""
    grey = image.mean(1, keepdim=True)
    dx, dy = grey[..., :-1, 1:] - grey[..., :-1, :-1], grey[..., 1:, :-1] - grey[..., :-1, :-1]
    return F.adaptive_avg_pool2d(torch.hypot(dx, dy), 16).flatten(1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """(B,): Pearson's correlation of the rows of a and b (B, D)."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return F.cosine_similarity(a, b, dim=1)


def hits(space: Space, pictures: Tensor, codes: Sequence[str]) -> np.ndarray:
    """(N, 2) bool: the nearest training picture has the code; one of the nearest five has it."""
    right = space.nearest(pictures) == np.array(codes)[:, None]
    return np.stack([right[:, 0], right.any(1)], axis=1)


def shares(right: np.ndarray) -> dict[str, Any]:
    """The means of hits."""
    if not len(right):
        return {"n": 0}
    top1, top5 = right.mean(0)
    return {"n": len(right), "top1": round(top1, 4), "top5": round(top5, 4)}


def by_checksum(items: Sequence[Any], name: Callable[[Any], str]) -> list[Any]:
    return sorted(items, key=lambda item: zlib.crc32(name(item).encode()))


# ---- the parts -----------------------------------------------------------------------------------


@torch.inference_mode()
def evaluate_autoencoder(
    sd: minisd.StableDiffusion, held: data.Pack, settings: argparse.Namespace
) -> dict[str, Any]:
    report = {}
    for name, images in zip(
        ("on white", "augmented"), plain_and_augmented(held, seed=0), strict=True
    ):
        decoded = torch.cat([sd.vae.decode(sd.vae.encode(batch)) for batch in images.split(32)])
        a, b = (images + 1) / 2, (decoded.clamp(-1, 1) + 1) / 2
        report[name] = {
            "n": len(a),
            "psnr": round(float(psnr(a, b).mean()), 2),
            "ssim": round(float(ssim(a, b).mean()), 4),
        }
        reconstructions(sd.vae, images[:48], settings.out / f"reconstructions {name}.png")
    images, _ = coloured_drawings(sd)
    a, b = (images + 1) / 2, round_trip(sd, images)
    report["coloured drawings"] = {
        "n": len(a),
        "psnr": round(float(psnr(a, b).mean()), 2),
        "ssim": round(float(ssim(a, b).mean()), 4),
    }
    reconstructions(sd.vae, images, settings.out / "reconstructions drawings.png")
    return report


def evaluate_captions(
    sd: minisd.StableDiffusion,
    pack: data.Pack,
    parts: np.ndarray,
    space: Space,
    settings: argparse.Namespace,
) -> dict[str, Any]:
    index: dict[str, dict[str, int]] = {}  # code -> style -> index of the picture
    for i, row in enumerate(pack.rows):
        index.setdefault(row["codepoint"], {})[row["style"]] = i
    complete = [code for code, styles in index.items() if set(MAIN) <= set(styles)]
    codes = by_checksum(complete, str)[: settings.labels]
    held = [i for i in np.flatnonzero(parts == "held") if pack.rows[i]["style"] in MAIN]
    held = by_checksum(held, lambda i: pack.rows[i]["text"])[: settings.labels]
    trained = [index[code][s] for code in codes for s in MAIN if parts[index[code][s]] == "train"]
    report = {}
    for name, pairs in (("seen", trained), ("held out", held)):
        rows = [pack.rows[i] for i in pairs for _ in range(settings.each)]
        prompts = [f"{row['text']}, {data.STYLES[row['style']][0]}" for row in rows]
        pictures = generate(sd, prompts, settings)
        right = hits(space, pictures, [row["codepoint"] for row in rows])
        report[name] = shares(right)
        style = np.array([row["style"] for row in rows])
        report[name]["by style"] = {
            data.STYLES[s][0]: shares(right[style == s]) for s in MAIN if (style == s).any()
        }
        examples = pictures[:: settings.each][:80]
        sheet(list(examples.split(16)), settings.out / f"captions {name}.png")
    real = (on_white(pack.rgba[torch.tensor(held, dtype=torch.long)]) + 1) / 2
    right = hits(space, real, [pack.rows[i]["codepoint"] for i in held])
    return {**report, "ceiling: the real held-out pictures": shares(right)}


def evaluate_prompts(sd: minisd.StableDiffusion, settings: argparse.Namespace) -> dict[str, Any]:
    prompts = (Path(__file__).parent / "prompts.txt").read_text().splitlines()
    prompts = prompts[: settings.prompts]
    pictures = generate(sd, prompts, settings)
    sheet(list(pictures.split(10)), settings.out / "prompts.png")
    return {"n": len(prompts)}


def evaluate_img2img(
    sd: minisd.StableDiffusion,
    pack: data.Pack,
    parts: np.ndarray,
    space: Space,
    settings: argparse.Namespace,
) -> dict[str, Any]:
    """With the style `3d`. The distance is the root mean square difference of pixels."""
    trained = {
        row["codepoint"] for row, part in zip(pack.rows, parts, strict=True) if part == "train"
    }
    drawings = [
        i for i in np.flatnonzero(parts == "drawing") if pack.rows[i]["codepoint"] in trained
    ]
    drawings = by_checksum(drawings, lambda i: pack.rows[i]["text"])[: settings.drawings]
    rows = [pack.rows[i] for i in drawings]
    images = on_white(pack.rgba[torch.tensor(drawings, dtype=torch.long)])
    lines = (images + 1) / 2
    codes = [row["codepoint"] for row in rows]
    prompts = [f"{row['text']}, 3d" for row in rows]
    results = {s: generate(sd, prompts, settings, images, s) for s in STRENGTHS}
    distances = torch.stack(
        [(results[s] - lines).square().mean((1, 2, 3)).sqrt() for s in STRENGTHS]
    )  # (strengths, N)
    means = [round(float(distance.mean()), 4) for distance in distances]
    report: dict[str, Any] = {
        "n": len(rows),
        "distance grows": round(float((distances[1:] > distances[:-1]).float().mean()), 4),
        "distance": dict(zip(map(str, STRENGTHS), means, strict=True)),
        "edges stay": {
            str(s): round(float(correlation(edges(results[s]), edges(lines)).mean()), 3)
            for s in STRENGTHS
        },
    }
    for s in (0.4, 0.7, 0.8, 0.9):
        report[f"right at {s}"] = shares(hits(space, results[s], codes))
    report["ceiling: the drawings themselves"] = shares(hits(space, lines, codes))
    rows_of_sheet = [lines, *(results[s] for s in (0.2, 0.4, 0.6, 0.7, 0.8, 0.9))]
    sheet([pictures[:20] for pictures in rows_of_sheet], settings.out / "img2img.png")
    others = prompts[1:] + prompts[:1]
    swapped = {s: generate(sd, others, settings, images, s) for s in (0.7, 0.8, 0.9)}
    for s, pictures in swapped.items():
        right = hits(space, pictures, codes[1:] + codes[:1])
        report[f"another prompt at {s}"] = shares(right)
    rows_of_sheet = [lines, *swapped.values()]
    sheet([pictures[:20] for pictures in rows_of_sheet], settings.out / "another prompt.png")
    return report


def coloured_drawings(sd: minisd.StableDiffusion) -> tuple[Tensor, list[str]]:
    """(N, 3, S, S) in [-1, 1], and what each shows: the label before the last word of its name."""
    paths = sorted(DRAWINGS.glob("*.png"))
    side = (sd.native_size, sd.native_size)
    images = torch.cat([to_tensor(resize(open_image(path).convert("RGB"), side)) for path in paths])
    return images.to(sd.device), [path.stem.rsplit(" ", 1)[0] for path in paths]


def round_trip(sd: minisd.StableDiffusion, images: Tensor) -> Tensor:
    """[-1, 1] -> 0..1: what the autoencoder makes of pictures."""
    decoded = [sd.vae.decode(sd.vae.encode(batch)) for batch in images.split(64)]
    return (torch.cat(decoded).clamp(-1, 1) + 1) / 2


@torch.inference_mode()
def evaluate_low_noise(
    sd: minisd.StableDiffusion, pack: data.Pack, parts: np.ndarray, settings: argparse.Namespace
) -> dict[str, Any]:
    """The mean squared error of x0 at low noise, without guidance, with the name as prompt."""

    def errors(images: Tensor, prompts: list[str]) -> list[float]:
        x0 = sd.vae.encode(images).repeat(NOISES, 1, 1, 1)
        context = torch.cat([sd.text_states(prompt) for prompt in prompts]).repeat(NOISES, 1, 1)
        rng = torch.Generator().manual_seed(0)
        noise = torch.randn(x0.shape, generator=rng).to(x0)
        means = []
        for t in LOW_NOISE:
            a, b = ABAR[t] ** 0.5, (1 - ABAR[t]) ** 0.5
            x = a * x0 + b * noise
            eps = sd.unet(x, torch.full((len(x),), float(t), device=x.device), context)
            means.append(float((((x - b * eps) / a) - x0).square().mean()))
        return means

    coloured = set(MAIN) - set(data.LINES)
    held = [i for i in np.flatnonzero(parts == "held") if pack.rows[i]["style"] in coloured]
    held = by_checksum(held, lambda i: pack.rows[i]["text"])[:HELD_EMOJI]
    emoji = errors(on_white(pack.rgba[torch.tensor(held)]), [pack.rows[i]["text"] for i in held])
    drawings = errors(*coloured_drawings(sd))
    return {
        str(t): {"drawings": round(a, 5), "emoji": round(b, 5), "ratio": round(a / b, 2)}
        for t, a, b in zip(LOW_NOISE, drawings, emoji, strict=True)
    }


@torch.inference_mode()
def evaluate_dial(
    sd: minisd.StableDiffusion,
    pack: data.Pack,
    parts: np.ndarray,
    space: Space,
    settings: argparse.Namespace,
) -> dict[str, Any]:
    """Distances are root mean squares to the drawing after the autoencoder's round trip.

    A result is the drawing if that is nearer than all training pictures, the thing if the nearest
    training picture has its label, and otherwise neither.
    """
    coloured, names = coloured_drawings(sd)
    lines = [i for i in np.flatnonzero(parts == "drawing") if pack.rows[i]["text"] in names]
    lines = by_checksum(lines, lambda i: pack.rows[i]["text"])[: settings.drawings]
    fire = to_tensor(resize(open_image(FIRE), (sd.native_size,) * 2)).to(sd.device)
    groups = {
        "coloured drawings": (coloured[: settings.drawings], names[: settings.drawings]),
        "line drawings": (
            on_white(pack.rgba[torch.tensor(lines, dtype=torch.long)]),
            [pack.rows[i]["text"] for i in lines],
        ),
        "fireplace": (fire, ["fire"]),
    }
    code_of = {row["text"]: row["codepoint"] for row in pack.rows}
    report, columns = {}, []
    for group, (images, labels) in groups.items():
        if not len(images):
            continue
        original = round_trip(sd, images)
        targets = original.repeat_interleave(settings.each, 0)
        prompts = [label for label in labels for _ in range(settings.each)]
        results = {
            s: generate(sd, prompts, settings, images.repeat_interleave(settings.each, 0), s)
            for s in DIAL
        }
        distance = torch.stack(
            [torch.zeros(len(targets), device=targets.device)]
            + [(results[s] - targets).square().mean((1, 2, 3)).sqrt() for s in DIAL]
        ).cpu()
        mean = distance.mean(1)
        steps = (mean[1:] - mean[:-1]) / mean[-1]
        own = space.place(features(targets))
        codes = np.array([code_of.get(label, "") for label in prompts])
        seen_as = {}
        for s in DIAL:
            points = space.place(features(results[s]))
            best, index = (points @ space.points.T).max(1)
            is_drawing = ((points * own).sum(1) > best).cpu().numpy()
            is_thing = space.labels[index.cpu().numpy()] == codes
            seen_as[str(s)] = {
                "drawing": round(float(is_drawing.mean()), 3),
                "thing": round(float((is_thing & ~is_drawing).mean()), 3),
                "neither": round(float((~is_thing & ~is_drawing).mean()), 3),
            }
        names_of = [str(s) for s in DIAL]
        report[group] = {
            "n": len(targets),
            "ssim": {str(s): round(float(ssim(results[s], targets).mean()), 3) for s in DIAL},
            "distance": dict(zip(names_of, [round(float(d), 4) for d in mean[1:]], strict=True)),
            "rises": round(float((distance[1:] > distance[:-1]).float().mean()), 3),
            "share of each step": dict(
                zip(names_of, [round(float(d), 3) for d in steps], strict=True)
            ),
            "largest step": round(float(steps.max()), 3),
            "seen as": seen_as,
        }
        every = slice(None, None, settings.each)
        columns.append(
            torch.stack([original.cpu(), *(results[s][every].cpu() for s in DIAL)])
        )  # (1 + strengths, n, 3, S, S)
    table = torch.cat(columns, dim=1)
    rows = [row for block in table.split(20, dim=1) for row in block]
    sheet(rows, settings.out / "dial.png")
    return report


def evaluate_fire(sd: minisd.StableDiffusion, settings: argparse.Namespace) -> dict[str, Any]:
    image = to_tensor(resize(open_image(FIRE), (sd.native_size,) * 2)).expand(4, -1, -1, -1)
    prompts = ["fire", "fire, 3d", "fire, noto", "fire on a dark background"]
    rows = [generate(sd, prompts, settings, image, s) for s in STRENGTHS]
    sheet([(image + 1) / 2, *rows], settings.out / "fire.png")
    return {"prompts": prompts, "strengths": list(STRENGTHS)}


def card(report: dict[str, Any]) -> str:
    """The numbers as a table for weights/README.md."""

    def percent(part: dict[str, Any]) -> str:
        return f"{part['top1']:.0%} / {part['top5']:.0%} of {part['n']:,}" if part["n"] else "none"

    auto, captions, img2img = (report[key] for key in ("autoencoder", "captions", "img2img"))
    rows = [
        (f"reconstruction {name}", f"{part['psnr']} dB, SSIM {part['ssim']}, {part['n']} pictures")
        for name, part in auto.items()
    ]
    rows += [
        (f"nearest training picture has the label, {name}: first / in five", percent(part))
        for name, part in captions.items()
    ]
    rows += [("img2img: distance grows with strength", f"{img2img['distance grows']:.1%}")]
    rows += [(f"img2img, {key}", percent(v)) for key, v in img2img.items() if "top1" in str(v)]
    stay = img2img["edges stay"]
    rows += [("img2img: correlation of edges at 0.4, at 0.7", f"{stay['0.4']}, {stay['0.7']}")]
    ratios = ", ".join(f"{part['ratio']} at t = {t}" for t, part in report["low noise"].items())
    rows += [("error of x0 on coloured drawings, over that on emoji", ratios)]
    for name, part in report["dial"].items():
        neither = [part["seen as"][s]["neither"] for s in ("0.4", "0.5", "0.6", "0.7")]
        rows += [
            (f"{name}: SSIM at 0.2, at 0.3", f"{part['ssim']['0.2']}, {part['ssim']['0.3']}"),
            (f"{name}: largest step of 0.1", f"{part['largest step']:.0%} of the whole change"),
            (f"{name}: neither drawing nor thing, 0.4 to 0.7", f"{sum(neither) / 4:.0%}"),
        ]
    lines = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return f"| held out from training | |\n|---|---|\n{lines}"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        "python -m weights.train.evaluate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("weights", nargs="?", help="default: the weights that come with minisd")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--data", metavar="DIR", help="the folder that holds the pack")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--each", type=int, default=4, help="pictures for each label and style")
    parser.add_argument("--drawings", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--parts", metavar="NAMES", help="only these, separated by commas")
    parser.add_argument("--sampler", choices=minisd.SAMPLERS, default="k_lms")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=None, help="default: 512 on CUDA, else 16")
    settings = parser.parse_args(argv)
    settings.batch = settings.batch or (512 if settings.device.startswith("cuda") else 16)
    settings.out.mkdir(parents=True, exist_ok=True)

    sd = minisd.load(settings.weights, device=settings.device)
    pack = data.read(data.find(settings.data), sd.native_size, settings.device)
    parts = data.split(pack.rows)
    held = pack.take(np.flatnonzero(parts == "held"))
    profile = PROFILES.get(training_facts(sd.path).get("profile", ""))
    learned = data.labelled(pack.rows, profile.concepts if profile else None)
    pack, parts = pack.take(np.flatnonzero(learned)), parts[learned]
    train = pack.take(np.flatnonzero(parts == "train"))
    white = [(on_white(batch) + 1) / 2 for batch in train.rgba.split(1024)]
    space = Space(torch.cat(white), [row["codepoint"] for row in train.rows])
    del train, white
    report: dict[str, Any] = {"weights": sd.path.name, "name": sd.name}
    report |= {key: getattr(settings, key) for key in ("steps", "sampler", "guidance")}
    evaluations = {
        "autoencoder": lambda: evaluate_autoencoder(sd, held, settings),
        "captions": lambda: evaluate_captions(sd, pack, parts, space, settings),
        "prompts": lambda: evaluate_prompts(sd, settings),
        "img2img": lambda: evaluate_img2img(sd, pack, parts, space, settings),
        "fire": lambda: evaluate_fire(sd, settings),
        "low noise": lambda: evaluate_low_noise(sd, pack, parts, settings),
        "dial": lambda: evaluate_dial(sd, pack, parts, space, settings),
    }
    chosen = settings.parts.split(",") if settings.parts else [*evaluations]
    if unknown := set(chosen) - set(evaluations):
        raise SystemExit(
            f"there is no part named {', '.join(sorted(unknown))}; choose from "
            f"{', '.join(evaluations)}"
        )
    evaluations = {name: evaluations[name] for name in chosen}
    for name, evaluate in evaluations.items():
        report[name] = evaluate()
        print(name, json.dumps(report[name], indent=1), flush=True)
        (settings.out / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    if not settings.parts:
        (settings.out / "card.md").write_text(card(report))
    return report


if __name__ == "__main__":
    main()
