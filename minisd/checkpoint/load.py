"""An original checkpoint file -> StableDiffusion, without running anything that is in the file.

The modules' attributes are named like the checkpoint's tensors, so loading is: strip the prefix,
load strictly. There is no table of renames that could be wrong. README.md explains the names row by
row.
"""

import json
import mmap
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from minisd.checkpoint.architecture import build, shortened
from minisd.checkpoint.kinds import kind_of_model
from minisd.checkpoint.names import POSITION_IDS, PREFIXES, SCHEDULE_BUFFERS
from minisd.checkpoint.numbers import DTYPES, fill, read_numbers
from minisd.checkpoint.tensors import READABLE, CheckpointError, StoredTensor, read_tensors
from minisd.schedule import ABAR
from minisd.stable_diffusion import StableDiffusion
from minisd.tokenizer import Tokenizer


def load(
    path: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> StableDiffusion:
    """Load an SD 1.x checkpoint, .ckpt or .safetensors; None: the weights that come with minisd.

    UNet and autoencoder get `dtype` (float32, bfloat16 or float16); the text encoder gets float32.
    Tensors that have this dtype in the file stay there, memory-mapped, until they are used. Raises
    CheckpointError (a ValueError), whose message says in one line what is wrong, and OSError.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32, bfloat16 or float16, not {dtype}")
    path = Path(path) if path else bundled_weights()
    tensors, metadata = read_tensors(path)  # 1. names, shapes, places in the file
    try:
        parts = by_model(tensors)  # 2. which tensor belongs to which model
        facts = read_facts(metadata)  # 3. what names and shapes do not show
        # 4. the architecture: the models, still without memory
        shapes = {part: {name: t.shape for name, t in parts[part].items()} for part in parts}
        models = build(shapes, facts.pop("unet_heads", 8), facts.pop("text_heads", 12))
        with open(path, "rb") as file:
            warn_of_other_schedule(tensors, file)
            for part, model in models._asdict().items():  # 5. the numbers
                part_dtype = torch.float32 if part == "text_encoder" else dtype
                fill(model, parts[part], file, part_dtype, PREFIXES[part])
                model.to(device)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {str(error)[:900]}") from None
    return StableDiffusion(
        Tokenizer(),
        models.text_encoder,
        models.unet,
        models.vae,
        path,
        torch.device(device),
        multiple=models.vae.factor * models.unet.factor,
        **facts,
    )


def bundled_weights() -> Path:
    """The weights that come with minisd: in the package if installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    for folder in (package / "weights", package.parent / "weights"):
        path = folder / "emoji.safetensors"
        if path.exists():
            return path
    raise CheckpointError(
        "the weights that come with minisd are missing: install it again, or name a file"
    )


def by_model(tensors: dict[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    """The tensors of each model, without prefixes. All others must be known leftovers.

    Raises CheckpointError, which says so if the file is of another kind.
    """
    kind = kind_of_model({name: tensor.shape for name, tensor in tensors.items()})
    if kind:
        raise CheckpointError(kind)
    parts: dict[str, dict[str, StoredTensor]] = {part: {} for part in PREFIXES}
    unknown, averages = [], 0
    newer = re.compile(r"^cond_stage_model\.transformer\.(?!text_model\.)")
    for name, tensor in tensors.items():
        # Newer versions of transformers dropped one level of the text encoder's names.
        key = newer.sub(PREFIXES["text_encoder"], name)
        part = next((part for part, prefix in PREFIXES.items() if key.startswith(prefix)), None)
        if key in SCHEDULE_BUFFERS or key == POSITION_IDS:
            shape = (1, 77) if key == POSITION_IDS else (1000,)
            if tensor.shape != shape:
                raise CheckpointError(f"wrong shape: {name} is {tensor.shape}, should be {shape}")
        elif key.startswith("model_ema."):
            averages += 1
        elif part is None:
            unknown.append(name)
        elif key.removeprefix(PREFIXES[part]) in parts[part]:
            raise CheckpointError(f"{key[:100]} occurs twice, with and without text_model.")
        elif tensor.dtype not in DTYPES:
            raise CheckpointError(f"{name[:100]} is stored as {tensor.dtype}: {READABLE}")
        elif 0 in tensor.shape:
            raise CheckpointError(f"{name[:100]} is empty: its shape is {tensor.shape}")
        else:
            parts[part][key.removeprefix(PREFIXES[part])] = tensor
    if unknown:
        raise CheckpointError(f"tensors that SD 1.x does not have: {shortened(unknown)}")
    if averages:
        purpose = "they are averages of the weights, for training"
        warnings.warn(f"ignored {averages} tensors model_ema.*: {purpose}", stacklevel=3)
    return parts


def read_facts(metadata: dict[str, str]) -> dict[str, Any]:
    """What names and shapes do not show, from the file's metadata under the key `minisd`.

    Raises CheckpointError.
    """
    numbers, texts = ("unet_heads", "text_heads", "native_size"), ("name", "licence")
    try:
        entries = dict(json.loads(metadata.get("minisd", "{}")).items())
        facts = {key: int(entries[key]) for key in numbers if key in entries}
        if not all(1 <= number <= 1 << 16 for number in facts.values()):
            raise ValueError("a number is below 1 or above 65,536")
        facts |= {key: str(entries[key])[:1000] for key in texts if key in entries}
        if "latent_rgb" in entries or "latent_rgb_bias" in entries:
            rows = np.array([*entries["latent_rgb"], entries["latent_rgb_bias"]], dtype=float)
            if rows.shape != (5, 3) or not np.isfinite(rows).all():
                raise ValueError("latent_rgb must be four rows of three numbers, its bias three")
            facts |= {"latent_rgb": rows[:4].tolist(), "latent_rgb_bias": rows[4].tolist()}
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"its metadata under the key 'minisd' is wrong: {error}") from None
    except RecursionError:
        raise CheckpointError("its metadata under the key 'minisd' is wrong: too deep") from None
    return facts


def warn_of_other_schedule(tensors: dict[str, StoredTensor], file: BinaryIO) -> None:
    """Warn if the file was trained on another schedule: minisd always uses that of SD 1.x."""
    stored = tensors.get("alphas_cumprod")
    if stored and stored.dtype in DTYPES:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        abar = read_numbers(stored, file, mapped, torch.float64).numpy()
        if not np.allclose(abar, ABAR, rtol=2e-2, atol=1e-3):  # wide enough for bfloat16
            schedules = "the file's noise schedule is not SD 1.x's, but minisd uses SD 1.x's"
            warnings.warn(schedules, stacklevel=3)
