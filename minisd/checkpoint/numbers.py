"""The numbers of a checkpoint's tensors: from the file into the models."""

import math
import mmap
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
# A matrix times a single vector is summed in an order that depends on the matrix's address: in
# another file, the same weights would give other bits. So tensors up to SMALL bytes get an address
# that is a multiple of ALIGNMENT. SD 1.x uses larger ones with single vectors only at 64x64 pixels.
ALIGNMENT, SMALL = 64, 1 << 23
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
    """A stored tensor in `dtype`: left in the mapped file if it can be, else copied and converted.

    It can be left there if it has that dtype, and is large or well aligned. Raises CheckpointError.
    """
    stored = DTYPES[tensor.dtype]
    n = tensor.nbytes // stored.itemsize
    alignment = ALIGNMENT if tensor.nbytes <= SMALL else stored.itemsize
    if stored == dtype and tensor.start % alignment == 0:
        flat = torch.frombuffer(mapped, dtype=stored, count=n, offset=tensor.start)
        return flat.as_strided(tensor.shape, tensor.stride).contiguous()
    # From the file, not from the map: touched pages of the map would count as memory too.
    flat = torch.empty(n, dtype=dtype)
    file.seek(tensor.start)
    if stored == dtype:
        buffer = flat.view(torch.uint8).numpy()
        if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise CheckpointError("the file was cut short while it was read")
    else:
        for chunk in flat.split(CHUNK):
            buffer = bytearray(file.read(len(chunk) * stored.itemsize))
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
