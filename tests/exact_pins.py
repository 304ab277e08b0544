"""Pins of exact mode: the SHA-256 of latents and pictures, on every machine the same.

    python -m tests.exact_pins           print the hashes that this machine computes, as JSON
    python -m tests.exact_pins box       those of the weights that come with minisd
    python -m tests.exact_pins check cuda   compare this machine's, on a device, with the tables
    python -m tests.exact_pins --write   write both tables again: tests/golden/exact_pins.json

The first table is of name-seeded weights, which never change. After a change of the weights that
come with minisd, the second has to be written again.
"""

import hashlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import minisd
from minisd.exact_mode import exact
from minisd.files import sha256
from minisd.more_samplers.guidance_rules import GUIDANCE_RULES
from minisd.run import Result

from .small_model import small_model

PINS = Path(__file__).parent / "golden" / "exact_pins.json"
ROOT = Path(__file__).parent.parent


def picture(width: int, height: int, alpha: bool = False) -> Image.Image:
    """Whole numbers only: the same on every machine."""
    y, x = np.mgrid[:height, :width]
    bands = [x * 13 % 256, y * 7 % 256, (x * y) % 256]
    if alpha:
        bands.append(np.where(x < width // 2, 255, np.where(y < 5, 100, 0)))
    return Image.fromarray(np.stack(bands, -1).astype(np.uint8))


def cases() -> dict[str, dict[str, Any]]:
    """The settings of each pin, by name."""
    table: dict[str, dict[str, Any]] = {
        f"sampler {name}": {"sampler": name, "steps": 4, "strength": 0.75}
        for name in minisd.SAMPLERS
    }
    for strength in (0.0, 0.3, 1.0):
        table[f"strength {strength}"] = {"strength": strength, "steps": 3}
    for size in ((16, 8), (20, 28), (32, 16)):
        table[f"size {size[0]}x{size[1]}"] = {"size": size, "sampler": "k_euler_a"}
    table["batch of 3"] = {"seed": [1, 2, 3], "sampler": "k_euler_a"}
    table["batch of 3, ddim"] = {"seed": [5, 4, 3], "sampler": "ddim", "steps": 4}
    for name in GUIDANCE_RULES:
        table[f"guidance {name}"] = {"guidance_rule": name, "sampler": "k_euler"}
    for schedule in ("karras", "exponential", "beta", "sgm_uniform"):
        table[f"schedule {schedule}"] = {"schedule": schedule, "steps": 6}
    table["negative prompt"] = {"prompt": "a (big)1.3 fire [smoke]", "sampler": "k_heun"}
    table["blend"] = {"prompt": "fire:1 water:0.4", "sampler": "k_euler"}
    table["variations"] = {"variations": ((9, 0.3),), "sampler": "k_euler"}
    table["text to image"] = {"image": None, "sampler": "k_dpmpp_2"}
    table["inpainting"] = {"alpha": True, "sampler": "k_lms"}
    table["inpainting without paste"] = {"alpha": True, "sampler": "k_euler_a", "paste": False}
    return table


def draw(sd: minisd.StableDiffusion, settings: dict[str, Any]) -> Result:
    settings = {
        "prompt": "fire",
        "steps": 2,
        "strength": 0.8,
        "seed": 7,
        "guidance": 3.0,
    } | settings
    side = sd.native_size
    size, alpha = settings.pop("size", (side, side)), settings.pop("alpha", False)
    image = None if settings.pop("image", "") is None else picture(*size, alpha)
    recipe = minisd.Recipe(**settings)
    with warnings.catch_warnings(), exact():
        warnings.simplefilter("ignore")
        return recipe.draw(sd, image)


def hashes(result: Result) -> list[str]:
    """SHA-256 of the latent's float32 numbers and of the pictures' pixels."""
    latent = result.latent.cpu().contiguous().numpy().astype("<f4")
    pixels = b"".join(image.tobytes() for image in result.images)
    return [hashlib.sha256(data).hexdigest() for data in (latent.tobytes(), pixels)]


def computed(names: list[str] | None = None, device: str = "cpu") -> dict[str, list[str]]:
    sd, table = small_model(device), cases()
    return {name: hashes(draw(sd, table[name])) for name in names or table}


def box(device: str = "cpu") -> dict[str, Any]:
    """Pins of the weights that come with minisd, and the weights' own hash."""
    sd = minisd.load(device=device)
    sketch = Image.open(ROOT / "docs/pictures/fire-sketch.png").convert("RGB").resize((64, 64))
    table: dict[str, Any] = {"weights": sha256(sd.path)}
    for sampler, steps, seed in (("k_lms", 4, 2), ("k_euler_a", 3, [1, 2, 3])):
        with exact():
            result = minisd.img2img(
                sd, "fire, noto", sketch, strength=0.8, steps=steps, guidance=4, seed=seed,
                sampler=sampler,
            )  # fmt: skip
        table[f"{sampler}, {steps} steps"] = hashes(result)
    return table


def check(device: str) -> int:
    """Compare the tables with what this machine computes. Returns the number of differences."""
    pins = json.loads(PINS.read_text())
    differences = 0
    for table, current in (("small", computed(device=device)), ("box", box(device))):
        differ = [name for name in pins[table] if pins[table][name] != current.get(name)]
        print(f"{table} on {device}: {len(pins[table]) - len(differ)} equal; different: {differ}")
        differences += len(differ)
    return differences


def main(words: list[str]) -> int:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if words[:1] == ["check"]:
        return min(1, check(words[1]))
    if words == ["--write"]:
        PINS.write_text(json.dumps({"small": computed(), "box": box()}, indent=1) + "\n")
    else:
        print(json.dumps(box() if words == ["box"] else computed(words or None)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
