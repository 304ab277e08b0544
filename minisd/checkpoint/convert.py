"""From a diffusers folder, or a checkpoint and LoRA files, to one ordinary SD 1.x checkpoint.

Tensors are read, changed and written one at a time: memory stays far below the size of the model.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minisd.checkpoint.architecture import build
from minisd.checkpoint.folder import MARK, read_folder
from minisd.checkpoint.forms import original_names
from minisd.checkpoint.load import by_model, errors_name, read_facts
from minisd.checkpoint.lora import Change, read_lora
from minisd.checkpoint.names import POSITION_IDS, PREFIXES, SCHEDULE_BUFFERS
from minisd.checkpoint.numbers import DTYPES, INTEGERS, is_finite, read_stored
from minisd.checkpoint.tensors import (
    ITEMSIZE,
    MAX_HEADER,
    CheckpointError,
    StoredTensor,
    read_tensors,
)
from minisd.checkpoint.v_prediction import stated_prediction
from minisd.files import new_file, open_folder, sha256

Progress = Callable[[int, int], object]  # is given the bytes written so far, and all of them
MARKS = ("v_pred", "ztsnr")  # empty tensors: for v-prediction, and for zero terminal SNR


class Entry(NamedTuple):
    """A tensor of the new file."""

    file: Path  # where it is stored now
    stored: StoredTensor
    dtype: str  # in the new file
    changes: list[Change]

    @property
    def nbytes(self) -> int:
        return math.prod(self.stored.shape) * ITEMSIZE[self.dtype]


class Conversion(NamedTuple):
    """All that the new file will hold, before a number is read."""

    entries: dict[str, Entry]  # in the new file's order
    metadata: dict[str, str]

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())


def convert(
    source: str | Path,
    out: str | Path,
    *,
    loras: Iterable[tuple[str | Path, float]] = (),
    dtype: torch.dtype | None = None,
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Write a .safetensors checkpoint in the original layout, and return what it holds.

    source: a diffusers folder, or a checkpoint. loras: files with their weights. dtype: of the
    weights, float32, float16 or bfloat16; None keeps each as it is. A file is never replaced.
    Raises CheckpointError, OSError.
    """
    conversion = prepare(Path(source), [(Path(file), weight) for file, weight in loras], dtype)
    write(conversion, Path(out), progress)
    return conversion


def prepare(source: Path, loras: list[tuple[Path, float]], dtype: torch.dtype | None) -> Conversion:
    files: dict[str, Path] = {}
    if source.is_dir():
        tensors, files, metadata = read_folder(source)
    else:
        tensors, metadata = read_tensors(source)
    names = {None: None} | {value: name for name, value in DTYPES.items() if name != "F64"}
    if dtype not in names:
        raise ValueError(f"dtype must be torch.float32, bfloat16 or float16, not {dtype}")
    with errors_name(source):
        tensors = original_names(tensors)  # of a folder, they have these names already
        parts = by_model({name: t for name, t in tensors.items() if name not in MARKS})
        facts = read_facts(metadata)
        shapes = {part: {name: t.shape for name, t in parts[part].items()} for part in parts}
        build(shapes, facts.get("unet_heads", 8), facts.get("text_heads", 12))
        is_v = (stated_prediction(tensors, metadata, source) or ["eps"])[0] == "v"
    changes: dict[str, list[Change]] = {}
    for file, weight in loras:
        for name, change in read_lora(file, weight, shapes).items():
            changes.setdefault(name, []).append(change)
    entries = {}
    for part, prefix in PREFIXES.items():
        for name, tensor in parts[part].items():
            key = prefix + name
            kind = names[dtype] or tensor.dtype.replace("F64", "F32")
            entries[key] = Entry(files.get(key, source), tensor, kind, changes.get(key, []))
    others = {name: tensors[name] for name in (*SCHEDULE_BUFFERS, POSITION_IDS) if name in tensors}
    others = {name: t for name, t in others.items() if t.dtype in DTYPES | INTEGERS}
    others |= {name: MARK for name in MARKS if name in tensors or (is_v and name == "v_pred")}
    for name, tensor in others.items():
        entries[name] = Entry(files.get(name, source), tensor, tensor.dtype, [])
    # Large types first, so that every tensor begins at a multiple of its type's size.
    entries = dict(sorted(entries.items(), key=lambda entry: -ITEMSIZE[entry[1].dtype]))
    merged = merged_before(metadata)
    for path, weight in loras:
        merged.append({"file": path.name, "weight": weight, "sha256": sha256(path)})
    history = {"converted_from": source.resolve().name, **({"loras": merged} if merged else {})}
    # Hashes in the metadata are those of the source's numbers.
    kept = {valid(key): valid(metadata[key]) for key in metadata if "hash" not in key}
    if is_v:
        kept["modelspec.prediction_type"] = "v"
    return Conversion(entries, kept | {"format": "pt", "minisd": json.dumps(facts | history)})


def merged_before(metadata: dict[str, str]) -> list[dict[str, Any]]:
    """The LoRA files that an earlier conversion merged."""
    try:
        return [
            {
                "file": str(lora["file"]),
                "weight": float(lora["weight"]),
                "sha256": str(lora["sha256"]),
            }
            for lora in json.loads(metadata.get("minisd", "{}"))["loras"]
        ]
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return []  # not minisd's


def valid(text: str) -> str:
    """Text that UTF-8 can encode, as the header must be."""
    return text.encode("utf-8", "replace").decode("utf-8")


def write(conversion: Conversion, out: Path, progress: Progress) -> None:
    """Raises CheckpointError, OSError. Then there is no file."""
    header: dict[str, Any] = {"__metadata__": conversion.metadata}
    end = 0
    for name, entry in conversion.entries.items():
        begin, end = end, end + entry.nbytes
        offsets = [begin, end]
        header[name] = {"dtype": entry.dtype, "shape": entry.stored.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise CheckpointError(f"could not write {out}: its metadata would be too long to be read")
    free = shutil.disk_usage(open_folder(out.parent)).free
    if end > free:
        sizes = f"it needs {end / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB left"
        raise OSError(f"could not write {out}: {sizes}")
    with new_file(out) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        done = 0
        for name, entry in conversion.entries.items():
            if not entry.nbytes:
                continue
            values = read_stored(entry.file, entry.stored)
            if entry.changes:
                values = values.float()
                for change in entry.changes:
                    values = values + change.of(values)
            if entry.dtype in DTYPES:
                values = values.to(DTYPES[entry.dtype])
                if not is_finite(values):
                    raise CheckpointError(f"{name} would hold NaN or Inf as {entry.dtype}")
            file.write(values.flatten().view(torch.uint8).numpy())
            done += entry.nbytes
            progress(done, end)
