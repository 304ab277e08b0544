"""The numbers of a checkpoint's tensors: from the file into the models."""

import math
import os
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from minisd.checkpoint.tensors import CheckpointError, StoredTensor

# Numbers that are read and converted at a time. They fit the processor's cache, and are too few for
# torch to use threads, which on a busy machine would wait for each other at every piece.
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
    state = {}
    for name, tensor in tensors.items():
        # Ask for the whole tensor at once: the system would read ahead in small steps.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), tensor.start, tensor.nbytes, os.POSIX_FADV_WILLNEED)
        state[name] = read_numbers(tensor, file, dtype)
        if not is_finite(state[name]):
            kind = str(dtype).removeprefix("torch.")
            if dtype == torch.float16 != DTYPES[tensor.dtype]:
                kind += ": load it as bfloat16 or float32"
            raise CheckpointError(f"{prefix}{name} holds NaN or Inf as {kind}")
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False).eval()


def read_numbers(tensor: StoredTensor, file: BinaryIO, dtype: torch.dtype) -> Tensor:
    """A stored tensor in `dtype`, in memory of its own. Raises CheckpointError.

    It is not left in a mapped file: an open model would change when its file is overwritten, and
    the process would be killed when it is cut. Memory of its own is also always aligned the same,
    and a matrix times a single vector is summed in an order that depends on the address.
    """
    stored = DTYPES[tensor.dtype]
    flat = torch.empty(tensor.nbytes // stored.itemsize, dtype=dtype)
    file.seek(tensor.start)
    if stored == dtype:
        buffer = flat.view(torch.uint8).numpy()
        if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise CheckpointError("the file was cut short while it was read")
    else:
        for chunk in flat.split(CHUNK):
            buffer = bytearray(file.read(len(chunk) * stored.itemsize))
            if len(buffer) < len(chunk) * stored.itemsize:
                raise CheckpointError("the file was cut short while it was read")
            chunk.copy_(torch.frombuffer(buffer, dtype=stored))
    return flat.as_strided(tensor.shape, tensor.stride).contiguous()


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
