"""How good is a weights file? Figures, sheets to look at, and a fragment of a model card.

    python -m weights.train.evaluate [FILE] --out DIR         # all of it; on a CPU over an hour
    python -m weights.train.evaluate [FILE] --out DIR --labels 20 --drawings 8    # a taste

autoencoder   PSNR and SSIM on held-out pictures, on white and as augmented; originals above what
              comes back
captions      `LABEL, STYLE` for 300 labels in each main style, and for every held-out pair, drawn
              four times: is the nearest training picture one of that label (features.py)? Seen and
              held-out pairs apart, beside what real held-out pictures reach
prompts       a sheet of the prompts in prompts.txt, which were written before there was a model
img2img       line drawings of a style that was never trained on, with their own label as prompt:
              does the distance to the drawing grow with strength, do the edges stay in place at
              0.4, is it the thing at 0.7? With another label, does it become that?
fire          the document's drawing at all strengths

Labels and drawings are chosen by checksum, seeds are counted from 0: it comes out the same again.
"""

import argparse
import json
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import minisd
from minisd.guidance import guided
from minisd.images import open_image, resize, to_tensor
from weights.train import data
from weights.train.__main__ import on_white, plain_and_augmented
from weights.train.autoencoder import reconstructions
from weights.train.export import training
from weights.train.features import Space
from weights.train.pictures import sheet
from weights.train.profiles import PROFILES

MAIN = ("fluent 3d", "fluent color", "fluent flat", "noto", "fluent mono")
STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FIRE = Path(__file__).resolve().parents[2] / "tests" / "seed" / "fire-drawing.png"


# ---- drawing many at once ------------------------------------------------------------------------


@torch.inference_mode()
def generate(
    sd: minisd.StableDiffusion,
    prompts: list[str],
    settings: argparse.Namespace,
    images: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """txt2img, or img2img where images (N, 3, S, S) in [-1, 1] are given -> (N, 3, S, S) in 0..1.

    The lines of minisd's img2img.py for many prompts at once; prompt i has seed i.
    """
    sample = minisd.SAMPLERS[settings.sampler]
    grid = minisd.SCHEDULES["ddim" if settings.sampler == "ddim" else "model"]
    sigmas = grid(settings.steps)[minisd.start_index(settings.steps, strength) :]
    states, side = {text: None for text in ["", *prompts]}, sd.native_size // sd.vae.factor
    for text in states:
        states[text] = sd.text_states(text)
    done = []
    for first in range(0, len(prompts), settings.batch):
        some = range(first, min(first + settings.batch, len(prompts)))
        noise = [
            torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(i)) for i in some
        ]
        x = sigmas[0] * torch.cat(noise).to(sd.device)
        if images is not None:
            x = x + sd.vae.encode(images[some.start : some.stop].to(sd.device))
        context = torch.cat([states[prompts[i]] for i in some])
        for step in sample(guided(sd.unet, context, states[""], settings.guidance), x, sigmas):
            x = step.x_next
        latent = x / (sigmas[-1] ** 2 + 1) ** 0.5
        done.append((sd.vae.decode(latent).clamp(-1, 1) + 1) / 2)
    return torch.cat(done)


# ---- measures ------------------------------------------------------------------------------------


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(B,) in dB, of pictures in 0..1."""
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)).clamp(min=1e-8))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(B,) Wang et al. 2004: Gaussian window of 11 pixels and sigma 1.5, each colour by itself."""
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
    """(B, 3, S, S) -> (B, 256): how much edge there is in each of 16x16 cells."""
    grey = image.mean(1, keepdim=True)
    dx, dy = grey[..., :-1, 1:] - grey[..., :-1, :-1], grey[..., 1:, :-1] - grey[..., :-1, :-1]
    return F.adaptive_avg_pool2d(torch.hypot(dx, dy), 16).flatten(1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return F.cosine_similarity(a, b, dim=1)


def hits(space: Space, pictures: Tensor, codes: list[str]) -> np.ndarray:
    """(N, 2) bool: the nearest training picture has the code, one of the five nearest has."""
    found = space.nearest(pictures) == np.array(codes)[:, None]
    return np.stack([found[:, 0], found.any(1)], axis=1)


def shares(found: np.ndarray) -> dict[str, float]:
    if not len(found):
        return {"n": 0}
    return {
        "n": len(found),
        "top1": round(found[:, 0].mean(), 4),
        "top5": round(found[:, 1].mean(), 4),
    }


def by_checksum(items: list, key) -> list:
    return sorted(items, key=lambda item: zlib.crc32(key(item).encode()))


# ---- the parts -----------------------------------------------------------------------------------


@torch.inference_mode()
def judge_autoencoder(sd, held: data.Pack, out: Path, _: argparse.Namespace) -> dict:
    found = {}
    for name, images in zip(("on white", "augmented"), plain_and_augmented(held, seed=0)):
        back = torch.cat([sd.vae.decode(sd.vae.encode(some)) for some in images.split(32)])
        a, b = (images + 1) / 2, (back.clamp(-1, 1) + 1) / 2
        found[name] = {
            "n": len(a),
            "psnr": round(float(psnr(a, b).mean()), 2),
            "ssim": round(float(ssim(a, b).mean()), 4),
        }
        reconstructions(sd.vae, images[:48], out / f"reconstructions {name}.png")
    return found


def judge_captions(sd, pack: data.Pack, parts, space: Space, out: Path, settings) -> dict:
    styles: dict[str, dict[str, int]] = {}
    for i, row in enumerate(pack.rows):
        styles.setdefault(row["codepoint"], {})[row["style"]] = i
    whole = [code for code, found in styles.items() if set(MAIN) <= set(found)]
    chosen = by_checksum(whole, str)[: settings.labels]
    held = [i for i in np.flatnonzero(parts == "held") if pack.rows[i]["style"] in MAIN]
    held = by_checksum(held, lambda i: pack.rows[i]["text"])[: settings.labels]
    seen = [styles[code][s] for code in chosen for s in MAIN if parts[styles[code][s]] == "train"]
    found = {}
    for name, pairs in (("seen", seen), ("held out", held)):
        rows = [pack.rows[i] for i in pairs for _ in range(settings.each)]
        prompts = [f"{row['text']}, {data.STYLES[row['style']][0]}" for row in rows]
        pictures = generate(sd, prompts, settings)
        right = hits(space, pictures, [row["codepoint"] for row in rows])
        found[name] = shares(right)
        style = np.array([row["style"] for row in rows])
        found[name]["by style"] = {
            data.STYLES[s][0]: shares(right[style == s]) for s in MAIN if (style == s).any()
        }
        lines = pictures[:: settings.each][:80]
        sheet(list(lines.split(16)), out / f"captions {name}.png")
    real = (on_white(pack.rgba[torch.tensor(held, dtype=torch.long)]) + 1) / 2
    right = hits(space, real, [pack.rows[i]["codepoint"] for i in held])
    return {**found, "ceiling: the real held-out pictures": shares(right)}


def judge_prompts(sd, out: Path, settings) -> dict:
    prompts = (Path(__file__).parent / "prompts.txt").read_text().splitlines()
    prompts = prompts[: settings.prompts]
    pictures = generate(sd, prompts, settings)
    sheet(list(pictures.split(10)), out / "prompts.png")
    return {"n": len(prompts)}


def judge_img2img(sd, pack: data.Pack, parts, space: Space, out: Path, settings) -> dict:
    """With `STYLE` 3d. Distance: root of the mean squared difference of pixels."""
    trained = {r["codepoint"] for i, r in enumerate(pack.rows) if parts[i] == "train"}
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
    far = torch.stack(
        [(results[s] - lines).square().mean((1, 2, 3)).sqrt() for s in STRENGTHS]
    )  # (9, N)
    found = {
        "n": len(rows),
        "distance grows": round(float((far[1:] > far[:-1]).float().mean()), 4),
        "distance": {str(s): round(float(d.mean()), 4) for s, d in zip(STRENGTHS, far)},
        "edges stay": {
            str(s): round(float(correlation(edges(results[s]), edges(lines)).mean()), 3)
            for s in STRENGTHS
        },
    }
    for s in (0.4, 0.7, 0.8, 0.9):
        found[f"right at {s}"] = shares(hits(space, results[s], codes))
    found["ceiling: the drawings themselves"] = shares(hits(space, lines, codes))
    sheet(
        [v[:20] for v in (lines, *(results[s] for s in (0.2, 0.4, 0.6, 0.7, 0.8, 0.9)))],
        out / "img2img.png",
    )
    others = prompts[1:] + prompts[:1]
    swapped = {s: generate(sd, others, settings, images, s) for s in (0.7, 0.8, 0.9)}
    for s, pictures in swapped.items():
        right = hits(space, pictures, codes[1:] + codes[:1])
        found[f"another prompt at {s}"] = shares(right)
    sheet([v[:20] for v in (lines, *swapped.values())], out / "another prompt.png")
    return found


def judge_fire(sd, out: Path, settings) -> dict:
    image = to_tensor(resize(open_image(FIRE), (sd.native_size,) * 2)).expand(4, -1, -1, -1)
    prompts = ["fire", "fire, 3d", "fire, noto", "fire on a dark background"]
    rows = [generate(sd, prompts, settings, image, s) for s in STRENGTHS]
    sheet([(image + 1) / 2, *rows], out / "fire.png")
    return {"prompts": prompts, "strengths": list(STRENGTHS)}


def card(found: dict) -> str:
    """The figures as a table for weights/README.md."""

    def percent(part: dict) -> str:
        return f"{part['top1']:.0%} / {part['top5']:.0%} of {part['n']:,}" if part["n"] else "none"

    auto, words, image = (found[key] for key in ("autoencoder", "captions", "img2img"))
    rows = [
        (f"reconstruction {name}", f"{part['psnr']} dB, SSIM {part['ssim']}, {part['n']} pictures")
        for name, part in auto.items()
    ]
    rows += [
        (f"nearest training picture has the label, {name}: first / in five", percent(part))
        for name, part in words.items()
    ]
    rows += [("img2img: distance grows with strength", f"{image['distance grows']:.1%}")]
    rows += [(f"img2img, {key}", percent(v)) for key, v in image.items() if "top1" in str(v)]
    stay = image["edges stay"]
    rows += [("img2img: correlation of edges at 0.4, at 0.7", f"{stay['0.4']}, {stay['0.7']}")]
    return "| held out from training | |\n|---|---|\n" + "".join(
        f"| {a} | {b} |\n" for a, b in rows
    )


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser("python -m weights.train.evaluate")
    parser.add_argument("weights", nargs="?", help="default: those that come with minisd")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--data", metavar="DIR")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--each", type=int, default=4, help="pictures of a label and style")
    parser.add_argument("--drawings", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", choices=minisd.SAMPLERS, default="k_lms")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=None, help="default: 512 on CUDA, else 16")
    settings = parser.parse_args(argv)
    settings.batch = settings.batch or (512 if settings.device.startswith("cuda") else 16)
    out = settings.out
    out.mkdir(parents=True, exist_ok=True)

    sd = minisd.load(settings.weights, device=settings.device)
    pack = data.read(data.find(settings.data), sd.native_size, settings.device)
    parts = data.split(pack.rows)
    held = pack.take(np.flatnonzero(parts == "held"))
    profile = PROFILES.get(training(sd.path).get("profile"))
    learned = data.labelled(pack.rows, profile.concepts if profile else None)
    pack, parts = pack.take(np.flatnonzero(learned)), parts[learned]
    train = pack.take(np.flatnonzero(parts == "train"))
    white = [(on_white(some) + 1) / 2 for some in train.rgba.split(1024)]
    space = Space(torch.cat(white), [row["codepoint"] for row in train.rows])
    del train, white
    found = {"weights": sd.path.name, "name": sd.name}
    found |= {key: getattr(settings, key) for key in ("steps", "sampler", "guidance")}
    for name, judge in (
        ("autoencoder", lambda: judge_autoencoder(sd, held, out, settings)),
        ("captions", lambda: judge_captions(sd, pack, parts, space, out, settings)),
        ("prompts", lambda: judge_prompts(sd, out, settings)),
        ("img2img", lambda: judge_img2img(sd, pack, parts, space, out, settings)),
        ("fire", lambda: judge_fire(sd, out, settings)),
    ):
        found[name] = judge()
        print(name, json.dumps(found[name], indent=1), flush=True)
        (out / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "card.md").write_text(card(found))
    return found


if __name__ == "__main__":
    main()
