"""`minisd convert SOURCE OUT`: make an ordinary checkpoint (minisd/checkpoint/convert.py)."""

import argparse
import math
import os
from pathlib import Path

import torch
from tqdm import tqdm

from minisd.checkpoint.convert import convert
from minisd.cli.messages import visible
from minisd.cli.model_files import find_model
from minisd.files import check_file
from minisd.files.marks import never

HELP = "make an ordinary checkpoint of a diffusers folder, a .ckpt, or a checkpoint and LoRA files"


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE",
        help="a diffusers folder (with unet/, vae/, text_encoder/), or a checkpoint: .ckpt or "
             ".safetensors, by path or by name")  # fmt: skip
    add("out", metavar="OUT.safetensors", help="the new file, in the original layout")
    add("--lora", metavar="FILE[:WEIGHT]", action="append", default=[], type=file_and_weight,
        help="merge a LoRA file into it with this weight (1), as in style.safetensors:0.8; may be "
             "repeated")  # fmt: skip
    add("--dtype", choices=["float32", "bfloat16", "float16"],
        help="how the numbers are stored (default: each as in SOURCE)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    source = find_model(args.source)
    assert source is not None
    inputs = [source, *(file for file, _ in args.lora)]
    out = check_file(args.out, "model.safetensors", inputs, replaceable=never)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    with tqdm(unit="B", unit_scale=True, desc=out.name) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        conversion = convert(source, out, loras=args.lora, dtype=dtype, progress=show)
    for file, weight in args.lora:
        changes = [change for e in conversion.entries.values() for change in e.changes]
        n = sum(change.file == file for change in changes)
        print(f"merged {visible(file.name)}: weight {weight:g}, {n} layer{'s' if n != 1 else ''}")
    kinds = ", ".join(sorted({entry.dtype for entry in conversion.entries.values()}))
    size = f"{conversion.nbytes / 1e9:.2f} GB"
    print(f"wrote {visible(out)}: {len(conversion.entries):,} tensors ({kinds}), {size}")
    return 0


def file_and_weight(text: str) -> tuple[Path, float]:
    """The words FILE or FILE:WEIGHT. Raises argparse.ArgumentTypeError."""
    name, colon, number = os.path.expanduser(text).rpartition(":")
    path = Path(os.path.expanduser(text))
    if not colon or path.exists():
        return path, 1.0
    try:
        weight = float(number)
    except ValueError:
        return path, 1.0  # the colon belongs to the name
    if not math.isfinite(weight):
        raise argparse.ArgumentTypeError(f"the weight {number} is not a finite number")
    return Path(name), weight
