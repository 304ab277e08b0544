"""The record in a picture: what drew it, down to the machine; with `--self-contained`, on what.

A PNG file keeps it as JSON in the text chunk `minisd`, beside the recipe that other programs read
(minisd/recipes/metadata.py). Init image and mask go into chunks of their own, as PNG files. Text in
a picture comes from strangers: sizes are limited, types are checked, and no path in it is opened.
"""

import hashlib
import io
import json
import os
import platform
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from minisd.exact_mode import is_exact
from minisd.fast.openvino import engine_of
from minisd.images import open_image
from minisd.recipes import Job, Recipe
from minisd.recipes.dream import dream_line
from minisd.recipes.metadata import Model

KEY = "minisd"
# The names of the chunks. Their small letters say: not critical, private, safe to copy.
IMAGE_CHUNK, MASK_CHUNK = b"inIt", b"maSk"
MAX_TEXT = 1 << 16  # characters of the record
# Every entry, with its type. Hashes are SHA-256 in hexadecimal.
ENTRIES: Mapping[str, type] = {
    "line": str,  # the recipe, as the text Dream has it
    "pixels": str,  # hash of the picture itself
    "init_image": str,  # hash of the init image's pixels, at the size that was drawn
    "mask": str,  # hash of the mask's numbers
    "init_file": str,  # hash of the init image's file
    "model": str,
    "checkpoint": str,  # hash of the file
    "autoencoder": str,  # hash of the file that replaced the checkpoint's own
    "ema": bool,
    "prediction": str,
    "minisd": str,
    "torch": str,
    "numpy": str,
    "pillow": str,
    "python": str,
    "system": str,
    "processor": str,
    "instructions": str,  # the widest that torch uses, such as AVX512
    "device": str,
    "dtype": str,
    "engine": str,  # what computed the networks, if not torch
    "threads": int,
    "batch": int,  # how many pictures were drawn together
    "exact": bool,
}


# ---- writing -------------------------------------------------------------------------------------


def record_of(
    job: Job, recipe: Recipe, model: Model, image: Image.Image | None, init_file: str | None = None
) -> dict[str, Any]:
    """The entries for a picture of this job.

    recipe: the picture's own, with its seed. image: the picture; None leaves out its hash.
    """
    seeds = job.recipe.seed
    entries = {
        "line": dream_line(recipe),
        "pixels": None if image is None else picture_hash(image),
        "init_image": picture_hash(job.image),
        "mask": picture_hash(job.mask),
        "init_file": init_file,
        "model": model.name,
        "checkpoint": model.sha256,
        "autoencoder": model.vae_sha256,
        "ema": model.ema,
        "prediction": model.prediction,
        **environment(job.sd.device, model.dtype),
        "engine": engine_of(job.sd),
        "batch": 1 if seeds is None or isinstance(seeds, int) else len(seeds),
    }
    return {name: entry for name, entry in entries.items() if entry not in (None, "")}


def environment(device: torch.device, dtype: str) -> dict[str, Any]:
    """The programs and the machine that compute now."""
    is_gpu = device.type == "cuda"
    return {
        "minisd": version("minisd"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "system": f"{sys.platform} {platform.machine()}",
        "processor": torch.cuda.get_device_name(device) if is_gpu else processor_name(),
        "instructions": "" if is_gpu else torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "exact": is_exact(),
    }


@cache
def processor_name() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor()


def picture_hash(picture: Image.Image | Tensor | None) -> str | None:
    """SHA-256 of its size and its pixels, or of a tensor's shape and numbers."""
    if picture is None:
        return None
    if isinstance(picture, Tensor):
        values = picture.detach().cpu().numpy()
    else:
        values = np.asarray(picture.convert("RGBA" if picture.mode == "RGBA" else "RGB"))
    return hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()


def enclosures(recipe: Recipe) -> dict[bytes, bytes]:
    """The recipe's init image and mask as chunks, without loss. Raises OSError, ValueError.

    The init image has its own size and the colours that minisd works with; a mask keeps its mode.
    """
    chunks = {}
    if recipe.image is not None:
        chunks[IMAGE_CHUNK] = as_png(open_image(recipe.image))
    if recipe.mask is not None:
        with Image.open(recipe.mask) as mask:
            if mask.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"):
                raise ValueError(f"--self-contained cannot hold a mask of the mode {mask.mode}")
            chunks[MASK_CHUNK] = as_png(mask)
    return chunks


def as_png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


# ---- reading -------------------------------------------------------------------------------------


def read_record(chunks: Mapping[str, str]) -> dict[str, Any]:
    """The entries among a picture's text chunks; empty if it has no record.

    Entries that are unknown or of another type are left out. Raises ValueError for a text that is
    not a record.
    """
    text = chunks.get(KEY)
    if text is None:
        return {}
    if len(text) > MAX_TEXT:
        raise ValueError(f"its record has {len(text):,} characters, and the limit is {MAX_TEXT:,}")
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise ValueError("its record is not a JSON object")
    return {
        name: stored[name] if kind is not str or name == "line" else stored[name][:200]
        for name, kind in ENTRIES.items()
        if type(stored.get(name)) is kind
    }


def read_enclosures(path: Path) -> tuple[Image.Image | None, Image.Image | None]:
    """The init image and the mask that a PNG file holds. Raises ValueError, OSError."""
    with Image.open(path) as image:
        image.load()
        chunks = {entry[0]: entry[1] for entry in getattr(image, "private_chunks", [])}
    return tuple(
        None if name not in chunks else decoded(chunks[name], path)
        for name in (IMAGE_CHUNK, MASK_CHUNK)
    )


def decoded(data: bytes, path: Path) -> Image.Image:
    problem = f"the picture inside {path} cannot be read"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                image.load()
                return image.copy()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
        raise ValueError(f"{problem}: it has {limit}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{problem}: it is not a PNG file") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"{problem}: {error}") from None
