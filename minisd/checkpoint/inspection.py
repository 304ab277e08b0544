"""What a weights file or diffusers folder is, from names, shapes, metadata and numbers.

No model is built.
"""

import hashlib
import math
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minisd.checkpoint.folder import read_folder
from minisd.checkpoint.forms import (
    Tensors,
    is_whole,
    original_names,
    training_averages,
    without_leftovers,
)
from minisd.checkpoint.kinds import kind_of_model
from minisd.checkpoint.known_files import FINGERPRINTS, KNOWN_FILES, owner_of
from minisd.checkpoint.load import by_model, errors_name
from minisd.checkpoint.names import POSITION_IDS, PREFIXES
from minisd.checkpoint.numbers import DTYPES, INTEGERS, is_finite, read_stored
from minisd.checkpoint.tensors import CheckpointError, StoredTensor, read_tensors
from minisd.checkpoint.training_schedule import recorded_schedule
from minisd.checkpoint.v_prediction import stated_prediction
from minisd.files import sha256

BLOCK = 1 << 20  # bytes that are read at a time to compute hashes
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
COUNTS = {"unet": 686, "vae": 248, "text_encoder": 196}  # weights of SD 1.x
TRAINING = ("global_step", "epoch", "step", "ss_steps", "ss_epoch")  # metadata


@dataclass
class Part:
    """The tensors of one of the models, or all tensors of a file that holds no whole model."""

    tensors: int
    numbers: int
    types: dict[str, int]  # how many tensors have each type


@dataclass
class Inspection:
    """All values are plain, so `dataclasses.asdict` makes JSON of it."""

    path: str
    sentence: str
    kind: str
    reason: str  # why minisd does not load it; empty if it does
    format: str
    size: int  # bytes
    parts: dict[str, Part]
    prediction: str  # "eps" or "v"
    prediction_source: str  # where the file says so; empty if it does not
    schedule: str
    position_ids: str
    averages: int  # training averages (model_ema.*)
    leftovers: dict[str, int]  # tensors that change no picture, by entry of forms.LEFTOVERS
    training: dict[str, str]
    metadata: dict[str, str]
    hashes: dict[str, str]
    differences: list[str]  # why other programs may draw other pictures with it
    # With numbers=True:
    known: dict[str, str] = field(default_factory=dict)  # the file, its autoencoder, its encoder
    average_distance: float | None = None  # |average - weight| / |weight|, over the UNet
    not_finite: list[str] = field(default_factory=list)  # names of tensors with NaN or Inf
    zero: list[str] = field(default_factory=list)  # matrices and convolutions without a number
    too_large: list[str] = field(default_factory=list)  # tensors that overflow in float16
    zero_bytes: int = 0  # in blocks of 1 MiB that are zero throughout


def inspect(path: str | Path, numbers: bool = False) -> Inspection:
    """What a weights file or diffusers folder is. Nothing in it is run, and no model is built.

    numbers: also read the whole file, for its hashes and for what its numbers say: a few seconds
    for 4 GB. Raises CheckpointError for other files, and OSError.
    """
    path = Path(path)
    files: dict[str, Path] = {}  # of a folder's tensors
    if path.is_dir():
        stored, files, metadata = read_folder(path)
    else:
        stored, metadata = read_tensors(path)
    with errors_name(path):
        tensors = original_names(stored)
    complete = is_whole(tensors)
    rest, leftovers = without_leftovers(tensors) if complete else (tensors, {})
    kind, reason = kind_of_model({name: tensor.shape for name, tensor in rest.items()})
    prediction, source = stated_prediction(tensors, metadata, path) or ("eps", "")
    if not reason:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                by_model(tensors)
            except CheckpointError as error:
                reason = str(error)
    parts = {"all": part_of(tensors)}
    if complete:
        weights = {
            part: {
                name: tensor
                for name, tensor in rest.items()
                if name.startswith(prefix) and name != POSITION_IDS
            }
            for part, prefix in PREFIXES.items()
        }
        parts = {part: part_of(tensors) for part, tensors in weights.items()}
        first = tensors.get(PREFIXES["unet"] + "input_blocks.0.0.weight")
        if first and first.shape[0] == 320 and not reason:
            reason = missing_weights({part: len(tensors) for part, tensors in weights.items()})
    result = Inspection(
        path=str(path),
        sentence=sentence(kind, reason, parts, prediction),
        kind=kind,
        reason=reason,
        format=format_of(path),
        size=sum(file.stat().st_size for file in set(files.values()) or {path}),
        parts=parts,
        prediction=prediction,
        prediction_source=source,
        schedule=recorded_schedule(tensors, path)[0],
        position_ids=position_ids(tensors, files.get(POSITION_IDS, path)),
        averages=sum(name.startswith("model_ema.diffusion_model") for name in tensors),
        leftovers=leftovers,
        training={key: metadata[key] for key in TRAINING if key in metadata},
        metadata=metadata,
        hashes={} if files else quick_hash(path),
        differences=[],
    )
    if numbers:
        read_all(result, tensors, path, files)
    result.differences = differences(result)
    return result


def part_of(tensors: Tensors) -> Part:
    types = Counter(TYPES.get(tensor.dtype, tensor.dtype) for tensor in tensors.values())
    numbers = sum(math.prod(tensor.shape) for tensor in tensors.values())
    return Part(len(tensors), numbers, dict(types))


def missing_weights(counts: dict[str, int]) -> str:
    lacking = [
        f"{COUNTS[part] - n} of the {COUNTS[part]} weights of {PREFIXES[part]}*"
        for part, n in counts.items()
        if n < COUNTS[part]
    ]
    return f"it lacks {', '.join(lacking)}" if lacking else ""


def sentence(kind: str, reason: str, parts: dict[str, Part], prediction: str) -> str:
    if reason:
        return f"This is {kind}, which minisd does not load: {reason}."
    types = {max(part.types, key=lambda name: part.types[name]) for part in parts.values()}
    trained = " that predicts v" if prediction == "v" else ""
    return f"This is {kind}{trained}, in {' and '.join(sorted(types))}."


def format_of(path: Path) -> str:
    if path.is_dir():
        return "diffusers folder"
    with open(path, "rb") as file:
        head = file.read(9)
    if head.startswith(b"PK"):
        return "torch.save (zip)"
    return "safetensors" if head[8:] == b"{" else "torch.save before torch 1.6"


def position_ids(tensors: Tensors, path: Path) -> str:
    """Whether the text encoder's positions are the numbers 0 to 76."""
    stored = tensors.get(POSITION_IDS)
    if stored is None:
        return "not in the file"
    if stored.dtype not in DTYPES | INTEGERS or stored.shape != (1, 77):
        return f"unreadable: {stored.dtype}, {stored.shape}"
    values = read_stored(path, stored).flatten().tolist()
    rows = [int(value) if math.isfinite(value) else -1 for value in values]
    wrong = [f"{rows[i]} for {i}" for i in range(77) if rows[i] != i]
    return f"wrong at {len(wrong)} of 77: {', '.join(wrong[:8])}" if wrong else "right"


def quick_hash(path: Path) -> dict[str, str]:
    """AUTOMATIC1111's first short hash, of 64 KiB alone; CivitAI shows it as AutoV1."""
    with open(path, "rb") as file:
        file.seek(1 << 20)
        digest = hashlib.sha256(file.read(1 << 16)).hexdigest()
    return {"AutoV1": digest[:8]}


# ---- the numbers ---------------------------------------------------------------------------------


def read_all(result: Inspection, tensors: Tensors, path: Path, files: dict[str, Path]) -> None:
    """Fill in, in place, what takes reading the whole file, or all of a folder's files."""

    def read(name: str, tensor: StoredTensor) -> torch.Tensor:
        return read_stored(files.get(name, path), tensor)

    if files:
        for file in sorted(set(files.values())):
            name = f"SHA-256 of {file.relative_to(path)}"
            result.hashes[name] = sha256(file)
    else:
        add_hashes(result, path)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or 0 in tensor.shape:
            continue
        values = read(name, tensor)
        if not is_finite(values):
            result.not_finite.append(name)
        elif values.ndim > 1 and not values.any():
            result.zero.append(name)
        elif tensor.dtype != "F16" and values.abs().max() > torch.finfo(torch.float16).max:
            result.too_large.append(name)
    for part in FINGERPRINTS:
        if owner := owner_of(part, tensors, read):
            result.known[part] = owner
    if result.averages:
        prefix = PREFIXES["unet"]
        unet = {name: t for name, t in tensors.items() if name.startswith(prefix)}
        try:
            averages = training_averages(
                tensors, {name.removeprefix(prefix): t for name, t in unet.items()}
            )
        except CheckpointError:  # some are missing
            return
        moved = total = 0.0
        for name, average in averages.items():
            weight = read(prefix + name, unet[prefix + name]).float()
            moved += (read_stored(path, average).float() - weight).square().sum().item()
            total += weight.square().sum().item()
        result.average_distance = math.sqrt(moved / total) if total else None


def add_hashes(result: Inspection, path: Path) -> None:
    complete, data = hashlib.sha256(), hashlib.sha256()
    with open(path, "rb") as file:
        length = 0
        if result.format == "safetensors":
            header = file.read(8)
            header += file.read(int.from_bytes(header, "little"))
            complete.update(header)
            length = len(header)
        while block := file.read(BLOCK):
            complete.update(block)
            if length:
                data.update(block)
            if block.count(0) == BLOCK:
                result.zero_bytes += BLOCK
    digest = complete.hexdigest()
    result.hashes |= {"SHA-256": digest, "AutoV2": digest[:10]}
    if length:
        result.hashes["AutoV3"] = data.hexdigest()[:12]
    if digest in KNOWN_FILES:
        result.known["file"] = KNOWN_FILES[digest]


# ---- conclusions ---------------------------------------------------------------------------------


def differences(result: Inspection) -> list[str]:
    """Why other programs may draw other pictures with this file, a sentence each."""
    reasons = []
    if result.prediction == "v":
        reasons.append("It predicts v. A program that takes it for eps draws only blotches.")
    if result.position_ids.startswith("wrong"):
        reasons.append(
            "AUTOMATIC1111, and transformers before 4.31, use the wrong position ids of the file; "
            "minisd and newer programs use 0 to 76."
        )
    if result.schedule.startswith("not SD"):
        reasons.append("Some programs use its noise schedule; minisd does with --schedule file.")
    if result.averages:
        reasons.append("Some programs use the training averages; minisd does with --ema.")
    for prefix in ("control_model.", "lora_", "bundle_emb."):
        if prefix in result.leftovers:
            reasons.append(f"Some programs use its {prefix}*; minisd does not.")
    if result.not_finite:
        reasons.append("It holds NaN or Inf: most programs draw a black picture.")
    if result.too_large:
        reasons.append("Some numbers are too large for float16: use bfloat16 or float32.")
    return reasons
