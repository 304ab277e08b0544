"""An original checkpoint file -> StableDiffusion, without running anything that is in the file.

The modules' attributes are named as the checkpoint's keys are, so that loading is: strip the
prefix, load strictly. There is no table of renames to trust. What the key names mean, README.md
tells row by row.
"""

import json
import math
import mmap
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from minisd.files.kinds import PREFIXES, Shapes, other_model
from minisd.files.tensors import READS, Tensor, TensorFileError, read_tensors
from minisd.schedule import ABAR
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import Tokenizer
from minisd.unet import Row, Table, UNet
from minisd.vae import VAE

# Left over by name: the training schedule, which minisd.schedule computes, and the numbers 0 to 76.
SCHEDULE_BUFFERS = set(
    """betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
    log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod
    posterior_variance posterior_log_variance_clipped posterior_mean_coef1
    posterior_mean_coef2""".split()  # noqa: SIM905
)
POSITION_IDS = PREFIXES["text_encoder"] + "embeddings.position_ids"

PIECE = 1 << 16  # numbers that are read and converted at a time: they stay in the processor's cache
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# Latent -> RGB, a quick look without the decoder: rgb in [-1, 1] = latent @ factors + bias. For
# SD 1.4, by keturn; the document's figures were drawn with these.
SD1_LATENT_RGB = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)


class CheckpointError(TensorFileError):
    """The file cannot be used as an SD 1.x model; the message says in one line what it is instead,
    or which of its tensors are wrong."""


@dataclass
class StableDiffusion:
    """The three models and the tokenizer, with what the file's names and shapes don't tell."""

    tokenizer: Tokenizer
    text_encoder: TextEncoder  # float32 always: it runs once, and its errors would be in every step
    unet: UNet
    vae: VAE
    path: Path
    device: torch.device
    name: str = "SD 1.x"
    licence: str = ""
    native_size: int = 512  # pixels a side that it was trained on
    latent_rgb: Iterable[Iterable[float]] = SD1_LATENT_RGB
    latent_rgb_bias: Iterable[float] = (0.0, 0.0, 0.0)

    @property
    def multiple(self) -> int:
        """Pictures' sides must be multiples of this: 64 in SD 1.x, 8 in the autoencoder times 8 in
        the UNet."""
        return self.vae.factor * self.unet.factor

    def text_states(self, prompt: str | torch.Tensor) -> torch.Tensor:
        """A prompt -> (1, 77, C) float32, the UNet's context; text states stay as they are."""
        if isinstance(prompt, torch.Tensor):
            return prompt
        return self.text_encoder(self.tokenizer([prompt]))


def load(
    path: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> StableDiffusion:
    """Load an SD 1.x checkpoint, .ckpt or .safetensors; None: the weights that come with minisd.

    UNet and autoencoder get `dtype` (float32, bfloat16 or float16), the text encoder is float32.
    Tensors that are of that dtype in the file stay there, memory-mapped, until they are used.
    Raises CheckpointError (a ValueError), with one line that says what is wrong, and OSError.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32, bfloat16 or float16, not {dtype}")
    path = Path(path) if path else bundled_weights()
    try:
        tensors, metadata = read_tensors(path)
    except TensorFileError as error:
        raise CheckpointError(str(error)) from None
    try:
        parts = split(tensors)
        facts = read_facts(metadata)
        models = build(parts, facts.pop("unet_heads", 8), facts.pop("text_heads", 12))
        with open(path, "rb") as file:
            warn_of_other_schedule(tensors, file)
            for part, model in models.items():
                kind = torch.float32 if part == "text_encoder" else dtype
                fill(model, parts[part], file, kind, PREFIXES[part])
                model.to(device)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {str(error)[:900]}") from None
    return StableDiffusion(Tokenizer(), **models, path=path, device=torch.device(device), **facts)


def bundled_weights() -> Path:
    """The weights that come with minisd: in the package if installed, beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "weights", package.parent / "weights"):
        if (path := folder / "emoji.safetensors").exists():
            return path
    raise CheckpointError("minisd's own weights are missing: install it again, or name a file")


def split(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by model, prefixes stripped. What is left over must be known by name.

    Raises CheckpointError, which names other kinds of files for what they are.
    """
    if what := other_model({name: tensor.shape for name, tensor in tensors.items()}):
        raise CheckpointError(what)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PREFIXES}
    unknown, ema = [], 0
    newer = re.compile(r"^cond_stage_model\.transformer\.(?!text_model\.)")
    for name, tensor in tensors.items():
        # Newer versions of transformers dropped one level of the text encoder's names.
        key = newer.sub(PREFIXES["text_encoder"], name)
        part = next((part for part, prefix in PREFIXES.items() if key.startswith(prefix)), None)
        if key in SCHEDULE_BUFFERS or key == POSITION_IDS:
            wanted = (1, 77) if key == POSITION_IDS else (1000,)
            if tensor.shape != wanted:
                raise CheckpointError(f"wrong shape: {name} is {tensor.shape}, should be {wanted}")
        elif key.startswith("model_ema."):
            ema += 1
        elif part is None:
            unknown.append(name)
        elif key.removeprefix(PREFIXES[part]) in parts[part]:
            raise CheckpointError(f"{key[:100]} is there twice, with and without text_model.")
        elif tensor.dtype not in DTYPES:
            raise CheckpointError(f"{name[:100]} is stored as {tensor.dtype}: {READS}")
        elif 0 in tensor.shape:
            raise CheckpointError(f"{name[:100]} is empty: its shape is {tensor.shape}")
        else:
            parts[part][key.removeprefix(PREFIXES[part])] = tensor
    if unknown:
        raise CheckpointError(f"tensors that SD 1.x does not have: {listed(unknown)}")
    if ema:
        what = "the training average beside the weights"
        warnings.warn(f"ignored {ema} tensors model_ema.*, {what}", stacklevel=3)
    return parts


# ---- the architecture, read off names and shapes -------------------------------------------------


def build(
    parts: dict[str, dict[str, Tensor]], unet_heads: int, text_heads: int
) -> dict[str, nn.Module]:
    """The three models without memory (on the meta device), as the names and shapes say they are.

    Raises CheckpointError that lists what differs, from them or from SD 1.x's, whichever the file
    is nearer to.
    """
    shapes = {
        part: {name: tensor.shape for name, tensor in found.items()}
        for part, found in parts.items()
    }
    text = shapes["text_encoder"]
    makers = {
        "unet": lambda: UNet(read_unet_table(shapes["unet"]), unet_heads),
        "vae": lambda: VAE(**read_vae(shapes["vae"])),
        "text_encoder": lambda: TextEncoder(**read_text_encoder(text), heads=text_heads),
    }
    models, problems = {}, []
    with torch.device("meta"):
        for part, make in makers.items():
            try:
                models[part] = make()
                found = differences(shapes[part], models[part], PREFIXES[part])
            except (LookupError, ValueError, RuntimeError, StopIteration):  # can't be read off
                found = None
            if found is None or found:
                original = {"unet": UNet, "vae": VAE, "text_encoder": TextEncoder}[part]()
                from_original = differences(shapes[part], original, PREFIXES[part])
                problems += from_original if found is None else min(found, from_original, key=len)
    if problems:
        raise CheckpointError(listed(problems, "; "))
    for part, heads in (("unet", unet_heads), ("text_encoder", text_heads)):
        for name, module in models[part].named_modules():
            width = getattr(module, "to_q", getattr(module, "q_proj", None))
            if width is not None and width.out_features % heads:
                where = f"{PREFIXES[part]}{name}'s {width.out_features} channels"
                raise CheckpointError(f"{heads} heads do not divide {where}")
    reads = mode(at[1] for name, at in shapes["unet"].items() if name.endswith("attn2.to_k.weight"))
    writes = text["final_layer_norm.weight"][0]
    if reads != writes:
        channels = f"its UNet reads {reads} channels of text, its text encoder writes {writes}"
        raise CheckpointError(f"{channels}: they are not of one model")
    return models


def differences(shapes: Shapes, model: nn.Module, prefix: str) -> list[str]:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return [
        *(f"missing {prefix}{name}" for name in wanted if name not in shapes),
        *(f"unknown {prefix}{name}" for name in shapes if name not in wanted),
        *(
            f"wrong shape: {prefix}{name} is {shapes[name]}, should be {shape}"
            for name, shape in wanted.items()
            if name in shapes and shapes[name] != shape
        ),
    ]


def listed(items: list[str], separator: str = ", ", most: int = 8) -> str:
    more = f"{separator}and {len(items) - most:,} more" if len(items) > most else ""
    return separator.join(item[:150] for item in items[:most]) + more


def count(names: Iterable[str], prefix: str, most: int) -> int:
    """How many numbered children a module has in these names. `most` is there because a made-up
    file would take minutes."""
    n = len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})
    if n > most:
        raise ValueError(f"{prefix}* goes to {n}")
    return n


def read_unet_table(shapes: Shapes) -> Table:
    """The table of UNet rows that names and shapes tell.

    Only residual blocks and the first convolution choose a width; each takes what the row before
    it gives, and on the way up also the output of an input block.
    """
    kinds = {"weight": "conv", "op": "down", "conv": "up", "in_layers": "res"}
    kinds["transformer_blocks"] = "attn"

    def layers_and_width(block: str, c: int) -> tuple[str, int]:
        layers, n = [], len(block)
        found = {name[n:]: shape for name, shape in shapes.items() if name.startswith(block)}
        for j in range(count(found, "", 4)):
            children = {name.split(".")[1] for name in found if name.startswith(f"{j}.")}
            layers.append(next(kind for child, kind in kinds.items() if child in children))
            if layers[-1] in ("conv", "res"):
                inside = f"{j}.out_layers." if layers[-1] == "res" else f"{j}."
                c = mode(shape[0] for name, shape in found.items() if name.startswith(inside))
        return " ".join(layers), c

    c, skips, input_blocks, output_blocks = 4, [], [], []
    for i in range(count(shapes, "input_blocks.", 20)):
        layers, c_out = layers_and_width(f"input_blocks.{i}.", c)
        input_blocks.append(Row(layers, c, c_out))
        skips.append(c := c_out)
    layers, c_out = layers_and_width("middle_block.", c)
    middle, c = Row(layers, c, c_out), c_out
    for i in range(count(shapes, "output_blocks.", 20)):
        layers, c_out = layers_and_width(f"output_blocks.{i}.", c)
        output_blocks.append(Row(layers, c + skips.pop(), c_out))
        c = c_out
    c_context = mode(at[1] for name, at in shapes.items() if name.endswith("attn2.to_k.weight"))
    return Table(tuple(input_blocks), middle, tuple(output_blocks), c_context)


def read_vae(shapes: Shapes) -> dict[str, Any]:
    levels = range(count(shapes, "encoder.down.", 8))
    widths = tuple(shapes[f"encoder.down.{i}.block.0.norm2.weight"][0] for i in levels)
    blocks = count(shapes, "encoder.down.0.block.", 8)
    return {"ch": shapes["encoder.conv_in.weight"][0], "widths": widths, "blocks": blocks}


def read_text_encoder(shapes: Shapes) -> dict[str, int]:
    return {
        "width": shapes["final_layer_norm.weight"][0],
        "layers": count(shapes, "encoder.layers.", 40),
        "hidden": shapes["encoder.layers.0.mlp.fc1.weight"][0],
    }


def read_facts(metadata: dict[str, str]) -> dict[str, Any]:
    """What names and shapes can't tell, from the file's metadata under the key `minisd`."""
    numbers, texts = ("unet_heads", "text_heads", "native_size"), ("name", "licence")
    try:
        found = dict(json.loads(metadata.get("minisd", "{}")).items())
        facts = {key: int(found[key]) for key in numbers if key in found}
        if not all(1 <= number <= 1 << 16 for number in facts.values()):
            raise ValueError("a number is below 1 or above 65,536")
        facts |= {key: str(found[key])[:1000] for key in texts if key in found}
        if "latent_rgb" in found or "latent_rgb_bias" in found:
            rows = np.array([*found["latent_rgb"], found["latent_rgb_bias"]], dtype=float)  # (5, 3)
            if rows.shape != (5, 3) or not np.isfinite(rows).all():
                raise ValueError("latent_rgb should be four rows of three numbers, its bias three")
            facts |= {"latent_rgb": rows[:4].tolist(), "latent_rgb_bias": rows[4].tolist()}
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"its metadata under the key 'minisd' is wrong: {error}") from None
    except RecursionError:
        raise CheckpointError("its metadata under the key 'minisd' is wrong: too deep") from None
    return facts


# ---- the numbers ---------------------------------------------------------------------------------


def fill(
    model: nn.Module, tensors: dict[str, Tensor], file: BinaryIO, dtype: torch.dtype, prefix: str
) -> None:
    """Give the model its numbers, tensor by tensor."""
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    state = {}
    for name, tensor in tensors.items():
        if hasattr(os, "posix_fadvise"):  # fetched whole: the system's own steps are small
            os.posix_fadvise(file.fileno(), tensor.start, tensor.nbytes, os.POSIX_FADV_WILLNEED)
        state[name] = values = read(tensor, file, mapped, dtype)
        # A finite sum has no NaN or Inf in it; that of finite numbers may overflow, so their ends
        # are asked then. Neither needs memory. In 16 bits the sum is had in a third of the time.
        if not math.isfinite(values.sum()) and not all(map(math.isfinite, values.aminmax())):
            kind = str(dtype).removeprefix("torch.")
            if dtype == torch.float16 != DTYPES[tensor.dtype]:
                kind += ": load it as bfloat16 or float32"
            raise CheckpointError(f"{prefix}{name} holds NaN or Inf as {kind}")
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False).eval()


def read(tensor: Tensor, file: BinaryIO, mapped: mmap.mmap, dtype: torch.dtype) -> torch.Tensor:
    """The numbers in `dtype`: in the mapped file if they can stay there, else converted."""
    stored = DTYPES[tensor.dtype]
    count = tensor.nbytes // stored.itemsize
    if stored == dtype and tensor.start % stored.itemsize == 0:
        flat = torch.frombuffer(mapped, dtype=stored, count=count, offset=tensor.start)
    else:  # read, since a map's pages would count as memory too; in pieces that stay in the cache
        flat = torch.empty(count, dtype=dtype)
        file.seek(tensor.start)
        for piece in flat.split(PIECE):
            buffer = bytearray(file.read(len(piece) * stored.itemsize))
            piece.copy_(torch.frombuffer(buffer, dtype=stored))
    return flat.as_strided(tensor.shape, tensor.stride).contiguous()


def warn_of_other_schedule(tensors: dict[str, Tensor], file: BinaryIO) -> None:
    """Some files were trained on another schedule. minisd always uses SD 1.x's, so say so."""
    if (stored := tensors.get("alphas_cumprod")) and stored.dtype in DTYPES:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        abar = read(stored, file, mapped, torch.float64).numpy()
        if not np.allclose(abar, ABAR, rtol=2e-2, atol=1e-3):  # room for float16 and bfloat16
            what = "the file's noise schedule is not SD 1.x's, which minisd uses all the same"
            warnings.warn(what, stacklevel=3)
