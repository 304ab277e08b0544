"""What is raised when memory runs out, whichever library raised it; and a message that helps."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What libraries say when memory runs out: torch, oneDNN, the C++ library, the system, CUDA.
NO_MEMORY = re.compile(
    r"not enough memory|out of memory|can(no|')t allocate memory|bad_?alloc|alloc_failed|"
    r"could not create a (primitive|memory)",
    re.I,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, whichever library raised it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


@contextmanager
def memory_for(purpose: str, remedy: str) -> Iterator[None]:
    """Raise MemoryError with a message in one line where memory runs out within the block."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        message = f"there is not enough memory {purpose}: {remedy}"
    else:
        return
    # Raised here, without the first error: its traceback would keep the large tensors alive.
    raise MemoryError(message)
