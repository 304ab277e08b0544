"""The numbers of a checkpoint's tensors: from the file into the models."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import torch
from torch import Tensor, nn

from minisd.checkpoint.tensors import CheckpointError, StoredTensor

WORKERS = 4  # threads that read: while one waits for the disk, the others convert
PIECE = 1 << 20  # numbers that are read at a time, where they must be converted
# Numbers that are converted at a time. They fit the processor's cache, and are too few for torch to
# use threads of its own, which on a busy machine would wait for each other at every chunk.
CHUNK = 1 << 14
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


def fill(
    model: nn.Module,
    tensors: dict[str, StoredTensor],
    file: BinaryIO,
    dtype: torch.dtype,
    prefix: str,
) -> None:
    """Give a model on the meta device its numbers, in place. Raises CheckpointError."""
    lock = Lock()

    def read(name: str) -> Tensor:
        # Ask for the whole tensor at once: the system would read ahead in small steps.
        if hasattr(os, "posix_fadvise"):
            start, nbytes = tensors[name].start, tensors[name].nbytes
            os.posix_fadvise(file.fileno(), start, nbytes, os.POSIX_FADV_WILLNEED)
        values = read_numbers(tensors[name], file, dtype, lock)
        if not is_finite(values):
            kind = str(dtype).removeprefix("torch.")
            if dtype == torch.float16 != DTYPES[tensors[name].dtype]:
                kind += ": load it as bfloat16 or float32"
            raise CheckpointError(f"{prefix}{name} holds NaN or Inf as {kind}")
        return values

    in_file_order = sorted(tensors, key=lambda name: tensors[name].start)
    with ThreadPoolExecutor(WORKERS) as pool:
        state = dict(zip(in_file_order, pool.map(read, in_file_order), strict=True))
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False).eval()


def read_numbers(tensor: StoredTensor, file: BinaryIO, dtype: torch.dtype, lock: Lock) -> Tensor:
    """A stored tensor in `dtype`, in memory of its own. Raises CheckpointError.

    It is not left in a mapped file: an open model would change when its file is overwritten, and
    the process would be killed when it is cut. A private mapping does not help: pages that were not
    written to are still the file's. Memory of its own is also always aligned the same, and a matrix
    times a single vector is summed in an order that depends on the address.
    """
    stored = DTYPES[tensor.dtype]
    flat = torch.empty(tensor.nbytes // stored.itemsize, dtype=dtype)
    if stored == dtype:
        read_into(flat, file, tensor.start, lock)
    else:
        buffer = torch.empty(min(PIECE, len(flat)), dtype=stored)
        for i, piece in enumerate(flat.split(PIECE)):
            source = buffer[: len(piece)]
            read_into(source, file, tensor.start + i * PIECE * stored.itemsize, lock)
            for chunk, numbers in zip(piece.split(CHUNK), source.split(CHUNK), strict=True):
                chunk.copy_(numbers)
    return flat.as_strided(tensor.shape, tensor.stride).contiguous()


def read_into(values: Tensor, file: BinaryIO, start: int, lock: Lock) -> None:
    """Fill a tensor, in place, from the bytes at `start`. Several threads may share the file."""
    buffer = memoryview(values.view(torch.uint8).numpy())
    while buffer:
        if hasattr(os, "preadv"):
            count = os.preadv(file.fileno(), [buffer], start)
        else:
            with lock:
                file.seek(start)
                count = file.readinto(buffer)  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError("the file was cut short while it was read")
        buffer, start = buffer[count:], start + count


def read_stored(path: Path, tensor: StoredTensor) -> Tensor:
    """One tensor of a file, as it is stored. Raises CheckpointError, OSError."""
    buffer = bytearray(tensor.nbytes)
    with open(path, "rb") as file:
        file.seek(tensor.start)
        if file.readinto(buffer) != len(buffer):
            raise CheckpointError(f"{path} was cut short while it was read")
    flat = torch.frombuffer(buffer, dtype=(DTYPES | INTEGERS)[tensor.dtype])
    return flat.as_strided(tensor.shape, tensor.stride).contiguous()


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or Inf, found without extra memory.

    If the sum is finite, so are all values. If not, it may only have overflowed: check the minimum
    and the maximum. The sum comes first because in 16 bits it takes a third of the time.
    """
    if math.isfinite(values.sum()):
        return True
    low, high = values.aminmax()
    return math.isfinite(low) and math.isfinite(high)
