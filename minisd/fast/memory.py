"""What glibc does with freed memory."""

import ctypes
from contextlib import suppress
from pathlib import Path

# Options of mallopt, from glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8


def give_back() -> None:
    """Return freed memory to the system. glibc would otherwise keep fragments worth half the
    weights. Does nothing on systems with another C library."""
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def is_plentiful() -> bool:
    """Whether 8 GB are available, of which kept memory takes one. False if that is unknown."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(available) >= 8_000_000  # kB
    return False


def keep_memory() -> None:
    """Let glibc keep freed memory, in one heap, for this whole process.

    Otherwise each large tensor comes from the system as new pages, which are zeroed one by one, and
    goes back to it after its operation. After this call, only `give_back` returns memory to the
    system. Does nothing on systems with another C library.
    """
    with suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(ARENA_MAX, 1)
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(TOP_PAD, 1 << 26)
