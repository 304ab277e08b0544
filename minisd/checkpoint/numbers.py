"""The numbers of a checkpoint's tensors: from the file into the models."""

import math
import mmap
import os
from typing import BinaryIO

import torch
from torch import Tensor, nn

from minisd.checkpoint.tensors import CheckpointError, StoredTensor

CHUNK = 1 << 16  # numbers that are read and converted at a time; they fit the processor's cache
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def fill(
    model: nn.Module,
    tensors: dict[str, StoredTensor],
    file: BinaryIO,
    dtype: torch.dtype,
    prefix: str,
) -> None:
    """Give a model on the meta device its numbers, in place. Raises CheckpointError."""
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    state = {}
    for name, tensor in tensors.items():
        # Ask for the whole tensor at once: the system would read ahead in small steps.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), tensor.start, tensor.nbytes, os.POSIX_FADV_WILLNEED)
        state[name] = read_numbers(tensor, file, mapped, dtype)
        if not is_finite(state[name]):
            kind = str(dtype).removeprefix("torch.")
            if dtype == torch.float16 != DTYPES[tensor.dtype]:
                kind += ": load it as bfloat16 or float32"
            raise CheckpointError(f"{prefix}{name} holds NaN or Inf as {kind}")
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False).eval()


def read_numbers(
    tensor: StoredTensor, file: BinaryIO, mapped: mmap.mmap, dtype: torch.dtype
) -> Tensor:
    """A stored tensor in `dtype`: left in the mapped file if it has that dtype, else converted."""
    stored = DTYPES[tensor.dtype]
    n = tensor.nbytes // stored.itemsize
    if stored == dtype and tensor.start % stored.itemsize == 0:
        flat = torch.frombuffer(mapped, dtype=stored, count=n, offset=tensor.start)
    else:  # from the file, not from the map: touched pages of the map would count as memory too
        flat = torch.empty(n, dtype=dtype)
        file.seek(tensor.start)
        for chunk in flat.split(CHUNK):
            buffer = bytearray(file.read(len(chunk) * stored.itemsize))
            chunk.copy_(torch.frombuffer(buffer, dtype=stored))
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
