"""An original checkpoint file -> StableDiffusion, without running anything that is in the file.

The modules' attributes are named like the checkpoint's tensors, so loading is: strip the prefix,
load strictly. README.md explains the names row by row. forms.py first takes off what other programs
put around SD 1.x's names, and what they leave beside its tensors.
"""

import functools
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from minisd.checkpoint.architecture import build, shortened
from minisd.checkpoint.folder import main_file, read_folder
from minisd.checkpoint.forms import (
    Tensors,
    autoencoder,
    describe_leftovers,
    is_whole,
    original_names,
    training_averages,
    without_leftovers,
)
from minisd.checkpoint.kinds import kind_of_model
from minisd.checkpoint.names import POSITION_IDS, PREFIXES, SCHEDULE_BUFFERS
from minisd.checkpoint.numbers import DTYPES, fill
from minisd.checkpoint.tensors import READABLE, CheckpointError, read_tensors
from minisd.checkpoint.training_schedule import recorded_schedule
from minisd.checkpoint.v_prediction import stated_prediction
from minisd.stable_diffusion import StableDiffusion
from minisd.tokenizer import Tokenizer

# It takes a sixth of a second to build, and never changes: all models have the same one.
shared_tokenizer = functools.cache(Tokenizer)


def load(
    path: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    vae: str | Path | None = None,
    ema: bool = False,
    prediction: str | None = None,
) -> StableDiffusion:
    """Load an SD 1.x checkpoint (.ckpt, .safetensors) or diffusers folder; None: minisd's weights.

    dtype   of UNet and autoencoder: float32, bfloat16 or float16; the text encoder gets float32
    vae     a file or diffusers folder whose autoencoder replaces the checkpoint's own
    ema     use the training averages of the UNet's weights, if the file holds them
    prediction  what the UNet was trained to predict, "eps" or "v"; None: what the file, its
            metadata, or a .yaml beside it says, else "eps"

    Raises CheckpointError (a ValueError), whose message says what is wrong in one line, or OSError.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32, bfloat16 or float16, not {dtype}")
    if prediction not in (None, "eps", "v"):
        raise ValueError(f"prediction must be 'eps' or 'v', not {prediction!r}")
    check_device(device)
    path = bundled_weights() if path is None else Path(path)
    # 1. names, shapes, places in the file
    if path.is_dir():
        folder = read_folder(path)
        tensors, metadata = folder.tensors, folder.metadata
        with errors_name(path):
            files = folder.file_by_model()
    else:
        tensors, metadata = read_tensors(path)
        files = dict.fromkeys(PREFIXES, path)
    with errors_name(path):
        tensors = original_names(tensors)
        parts = by_model(tensors, ema)  # 2. which tensor belongs to which model
        facts = read_facts(metadata)  # 3. what names and shapes do not show
        prediction = prediction or (stated_prediction(tensors, metadata, path) or ["eps"])[0]
        schedule, abar = recorded_schedule(tensors, path)
        if schedule not in ("SD 1.x's", "not recorded"):
            other = f"the file's noise schedule is {schedule}; minisd uses SD 1.x's"
            remedy = ", unless a recipe has the schedule file" if abar else ""
            warnings.warn(other + remedy, stacklevel=2)
    if vae is not None:
        with errors_name(vae):
            files["vae"] = main_file(Path(vae), "vae")
            parts["vae"] = weights_of("vae", autoencoder(read_tensors(files["vae"])[0]))
    with errors_name(path if vae is None else f"{path} with the autoencoder {vae}"):
        # 4. the architecture: the models, still without memory
        shapes = {part: {name: t.shape for name, t in parts[part].items()} for part in parts}
        heads = facts.pop("unet_heads", 8), facts.pop("text_heads", 12)
        models = build(shapes, *heads, prediction)
        for part, model in models._asdict().items():  # 5. the numbers
            part_dtype = torch.float32 if part == "text_encoder" else dtype
            with open(files[part], "rb") as file:
                fill(model, parts[part], file, part_dtype, PREFIXES[part])
            model.to(device)
        warn_of_zeros(models._asdict())
    return StableDiffusion(
        shared_tokenizer(),
        models.text_encoder,
        models.unet,
        models.vae,
        path,
        torch.device(device),
        multiple=models.vae.factor * models.unet.factor,
        vae_path=None if vae is None else Path(vae),
        ema=ema,
        abar=abar,
        **facts,
    )


def check_device(device: str | torch.device, name: str = "the device") -> None:
    """Raises ValueError for a device that does not exist, or that cannot compute.

    name: what the message calls it, such as the switch.
    """
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each kind of device raises an error of its own
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{name} {device} cannot be used: {problem}") from None


@contextmanager
def errors_name(path: str | Path) -> Iterator[None]:
    """Within the block, a CheckpointError's message gets the file's path in front."""
    try:
        yield
    except CheckpointError as error:
        message = str(error)
        prefix = "" if message.startswith(f"{path}: ") else f"{path}: "
        raise CheckpointError(prefix + message[:900]) from None


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


def by_model(tensors: Tensors, ema: bool = False) -> dict[str, Tensors]:
    """The tensors of each model, without prefixes. All others must be known leftovers.

    tensors: under SD 1.x's names. ema: the training averages as the UNet's tensors. Raises
    CheckpointError, which says so if the file is of another kind.
    """
    leftovers: dict[str, int] = {}
    averages = tensors
    if ema:
        tensors = {name: t for name, t in tensors.items() if not name.startswith("model_ema.")}
    if is_whole(tensors):
        tensors, leftovers = without_leftovers(tensors)
    kind, reason = kind_of_model({name: tensor.shape for name, tensor in tensors.items()})
    if reason:
        kind = kind if kind.startswith("not ") else f"this is {kind}"
        raise CheckpointError(f"{kind}: {reason}")
    parts: dict[str, Tensors] = {part: {} for part in PREFIXES}
    unknown = []
    for name, tensor in tensors.items():
        part = next((part for part, prefix in PREFIXES.items() if name.startswith(prefix)), None)
        if name in SCHEDULE_BUFFERS or name == POSITION_IDS:
            shape = (1, 77) if name == POSITION_IDS else (1000,)
            if tensor.shape != shape:
                raise CheckpointError(f"wrong shape: {name} is {tensor.shape}, should be {shape}")
        elif part is None:
            unknown.append(name)
        else:
            parts[part][name.removeprefix(PREFIXES[part])] = tensor
    if ema:
        parts["unet"] = training_averages(averages, parts["unet"])
    if unknown:
        raise CheckpointError(f"tensors that SD 1.x does not have: {shortened(unknown)}")
    if leftovers:
        warnings.warn(f"ignored {describe_leftovers(leftovers)}"[:900], stacklevel=3)
    return {part: weights_of(part, parts[part]) for part in parts}


def weights_of(part: str, tensors: Tensors) -> Tensors:
    """A model's tensors as they are. Raises CheckpointError for those that cannot be weights."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            stored = f"{PREFIXES[part]}{name[:100]} is stored as {tensor.dtype}"
            raise CheckpointError(f"{stored}: {READABLE}")
        if 0 in tensor.shape:
            empty = f"{PREFIXES[part]}{name[:100]} is empty"
            raise CheckpointError(f"{empty}: its shape is {tensor.shape}")
    return tensors


def read_facts(metadata: dict[str, str]) -> dict[str, Any]:
    """What names and shapes do not show, from the file's metadata under the key `minisd`.

    Text there that is not a JSON object is another program's, and ignored. Raises CheckpointError.
    """
    text = metadata.get("minisd", "{}")
    numbers, texts = ("unet_heads", "text_heads", "native_size"), ("name", "licence")
    try:
        entries = json.loads(text)
    except ValueError:
        entries = None
    except RecursionError:
        raise CheckpointError("its metadata under the key 'minisd' is wrong: too deep") from None
    if not isinstance(entries, dict):
        warnings.warn("its metadata under the key 'minisd' is ignored: not minisd's", stacklevel=3)
        return {}
    try:
        facts = {key: int(entries[key]) for key in numbers if key in entries}
        if not all(1 <= number <= 1 << 16 for number in facts.values()):
            raise ValueError("a number is below 1 or above 65,536")
        facts |= {key: str(entries[key])[:1000] for key in texts if key in entries}
        if "latent_rgb" in entries or "latent_rgb_bias" in entries:
            rows = np.array([*entries["latent_rgb"], entries["latent_rgb_bias"]], dtype=float)
            if rows.shape != (5, 3) or not np.isfinite(rows).all():
                raise ValueError("latent_rgb must be four rows of three numbers, its bias three")
            facts |= {"latent_rgb": rows[:4].tolist(), "latent_rgb_bias": rows[4].tolist()}
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise CheckpointError(f"its metadata under the key 'minisd' is wrong: {error}") from None
    return facts


def warn_of_zeros(models: dict[str, nn.Module]) -> None:
    """Warn of matrices and convolutions that are zero throughout: no training leaves such."""
    names = []
    for part, model in models.items():
        for name, weight in model.state_dict().items():
            if weight.ndim > 1 and not weight.flatten()[:64].any() and not weight.any():
                names.append(PREFIXES[part] + name)
    if names:
        zeros = f"{len(names)} weight{'s are' if len(names) > 1 else ' is'} zero throughout"
        remedy = "the download may not have been finished"
        warnings.warn(f"{zeros}, {remedy}: {shortened(names, limit=3)}", stacklevel=3)
