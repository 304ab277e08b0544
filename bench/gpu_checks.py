"""What bench/gpu.py checks: draws of noise, golden values, command lines, places that wait."""

import ast
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import minisd
from minisd.guidance import Guided
from minisd.samplers import SAMPLERS, ddim, k_lms
from minisd.schedule import SCHEDULES, start_index

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
SKETCH = ROOT / "docs" / "pictures" / "fire-sketch.png"

# ---- noise ---------------------------------------------------------------------------------------

NOISE_SEEDS = (0, 42, 2**32 - 1, 2**40 + 7)


def noise_shapes(threads: int) -> list[tuple[int, ...]]:
    """Latents and batches of them; numbers below, at and above one and two passes of the grid."""
    shapes: list[tuple[int, ...]] = [(3,), (1, 4, 8, 8), (1, 4, 64, 64), (1, 4, 96, 64)]
    shapes += [(1, 4, 128, 128), (2, 4, 64, 64), (8, 4, 64, 64), (1, 64, 2048), (511, 513)]
    shapes += [(threads,), (threads + 1,), (5, 4, 128, 128), (4 * threads,), (4 * threads + 1,)]
    return [*shapes, (17, 4, 128, 128), (3, 1000, 1001)]


def noise_places(n: int, threads: int) -> Tensor:
    """Which of n numbers are kept: all of a small latent, else windows around the borders."""
    if n <= 16_384:
        return torch.arange(n)
    borders = [0, 256, 16_384, *range(threads, n, threads), n]
    places = {i for border in borders for i in range(border - 24, border + 24) if 0 <= i < n}
    places |= set(np.linspace(0, n - 1, 128).astype(int).tolist())
    return torch.tensor(sorted(places))


# ---- golden --------------------------------------------------------------------------------------


def golden_values(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = {key: ast.literal_eval(text) for key, text in file.metadata().items()}
    return values, facts


@torch.inference_mode()
def golden_errors(
    sd: minisd.StableDiffusion, values: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> dict[str, float]:
    """The largest difference of each result, over the largest value: calls, then whole runs."""
    v = {name: tensor.to(sd.device) for name, tensor in values.items()}

    def error(result: Tensor, expected: Tensor) -> float:
        result, expected = result.double(), expected.double()
        return ((result - expected).abs().max() / expected.abs().max()).item()

    tokens = sd.tokenizer(facts["prompts"])
    errors = {
        "text": error(sd.text_encoder(tokens), v["clip.context"]),
        "unet": error(sd.unet(v["unet.x"], v["unet.t"], v["unet.context"]), v["unet.eps"]),
        "moments": error(sd.vae.moments(v["vae.image"]), v["vae.moments"]),
        "decode": error(sd.vae.decode(0.18215 * v["vae.latent"]), v["vae.decoded"]),
    }
    context, uncond = v["img2img.context"], v["img2img.uncond"]
    predict_eps = Guided(sd.unet, context, uncond, facts["scale"])
    x0, noise, steps = v["img2img.init_latent"], v["img2img.noise"], facts["steps"]
    for schedule in ("karras", "model"):
        for strength in facts["strengths"]:
            name = f"img2img.k_lms.{schedule}.{strength}.x"
            if name in v:
                sigmas = SCHEDULES[schedule](steps)[start_index(steps, strength) :]
                run = k_lms(predict_eps, x0 + sigmas[0] * noise, sigmas)
                pairs = zip(run, v[name][1:])
                worst = max(error(step.x_next[0], expected) for step, expected in pairs)
                errors[f"k_lms.{schedule}.{strength}"] = worst
    for strength in facts["strengths"]:
        expected = v[f"img2img.ddim.{strength}.x"]
        sigmas = SCHEDULES["ddim"](steps)[start_index(steps, strength) :]
        scales = [(sigma**2 + 1) ** -0.5 for sigma in sigmas]
        run = ddim(predict_eps, expected[:1] / scales[0], sigmas)
        pairs = zip(run, expected[1:], scales[1:])
        errors[f"ddim.{strength}"] = max(error(s.x_next[0] * c, x) for s, x, c in pairs)
    return errors


# ---- commands ------------------------------------------------------------------------------------


def command_lines(folder: Path, device: torch.device) -> dict[str, list[str]]:
    """A line for each command: all of them write below the folder."""
    where = ["--device", str(device)]
    out = ["-o", str(folder / "pictures")]
    drawing = ["-I", str(SKETCH), "--fit", "-f", "0.8", "-C", "4", "-S", "2", "-s", "10"]
    prompt = "fire, noto"
    picture = str(folder / "pictures" / "000001.2.png")
    traces = folder / "traces"
    names = ["s10-f0.8-k_lms-S2.safetensors", "s10-f0.8-k_euler_a-S2.safetensors"]
    lines = folder / "lines.txt"
    lines.write_text(f"{prompt} {' '.join(drawing)}\nfire -S3 -s5 -A k_euler_a\n")
    weights, mask = str(ROOT / "weights" / "emoji.safetensors"), str(mask_file(folder))
    # Most CPUs have no instructions for float16, and take minutes.
    half = "float16" if device.type == "cuda" else "bfloat16"
    return {
        "img2img": ["img2img", prompt, *drawing, *out, *where],
        "img2img-inpaint": ["img2img", prompt, *drawing, "-M", mask, *out, *where],
        "img2img-half": ["img2img", prompt, *drawing, "--dtype", half, *out, *where],
        "img2img-bf16": ["img2img", prompt, *drawing, "--dtype", "bfloat16", *out, *where],
        "img2img-n": ["img2img", prompt, *drawing, "-n", "3", "-g", "--variants", "1", *out,
                      *where],
        "txt2img": ["txt2img", "tree", "-S", "5", "-s", "10", *out, *where],
        "txt2img-blend": ["txt2img", "fire:2 tree:1", "-S", "5", "-s", "5", "-v", "0.2", "-n", "2",
                          *out, *where],
        "prompt": ["--from_file", str(lines), *out, *where],
        "strip": ["strip", prompt, *drawing, "-A", "k_lms,k_euler_a", "--rows", "x,x0,decode",
                  "--traces", str(traces), *out, *where],
        "diff": ["diff", str(traces / names[0]), str(traces / names[1]), *out],
        "attention": ["attention", prompt, *drawing, *out, *where],
        "explore": ["explore", prompt, "-I", str(SKETCH), "-f", "0.4,0.8", "-S", "2", "-s", "10",
                    "-C", "4", "-o", str(folder / "explorer.html"), *where],
        "sweep": sweep_line(folder / "sweep", device),
        "recall": ["recall", picture],
        "translate": ["translate", picture, "--to", "comfyui"],
        "verify": ["verify", picture, "-I", str(SKETCH), *where],
        "bisect": ["bisect", "same", "dtype=bfloat16", prompt, *drawing, *where],
        "explain": ["explain", "-s", "10", "-f", "0.8"],
        "lab": ["lab", "k_euler", "--compare", "k_heun", "--reference", "100", *where],
        "inspect": ["inspect", weights],
        "convert": ["convert", weights, str(folder / "half.safetensors"), "--dtype", "float16"],
    }  # fmt: skip


def sweep_line(folder: Path, device: torch.device) -> list[str]:
    """Every sampler."""
    words = ["sweep", "fire, noto", "-I", str(SKETCH), "--fit", "-f", "0.8", "-C", "4", "-S", "2,3"]
    words += ["-s", "10", "-A", ",".join(SAMPLERS), "--to", str(folder), "--device", str(device)]
    return words


def mask_file(folder: Path) -> Path:
    """A mask whose left half is redrawn."""
    with Image.open(SKETCH) as sketch:
        mask = Image.new("L", sketch.size, 255)
    mask.paste(0, (0, 0, mask.width // 2, mask.height))
    path = folder / "mask.png"
    mask.save(path)
    return path


def png_difference(a: Path, b: Path) -> tuple[int, float]:
    """The largest difference, of 255, and the share of the values that differ by 2 or more."""
    with Image.open(a) as image_a, Image.open(b) as image_b:
        if image_a.size != image_b.size:
            return 999, 1.0
        pixels = [np.asarray(image.convert("RGB")).astype(int) for image in (image_a, image_b)]
    difference = np.abs(pixels[0] - pixels[1])
    return int(difference.max()), float((difference > 1).mean())


# ---- waiting -------------------------------------------------------------------------------------

WAITING = ("is_nonzero", "item", "_local_scalar_dense", "equal", "nonzero", "masked_select")


class WaitingOperations(TorchDispatchMode):
    """Counts the operations whose result the CPU must know."""

    def __init__(self, places: Counter[str]):
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.removeprefix("aten::") in WAITING:
            frames = [f for f in traceback.extract_stack() if "/minisd/" in f.filename]
            if frames:
                self.places[place(frames[-1].filename, frames[-1].lineno or 0)] += 1
        return func(*args, **(kwargs or {}))


def place(filename: str, line: int) -> str:
    path = Path(filename)
    return f"{'/'.join(path.parts[-2:])}:{line}"
