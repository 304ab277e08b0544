"""A measurement in a process of its own, and the memory and disk reads of that process."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def in_new_process(function: Callable, *args: Any) -> Any:
    """function(*args) in a new process that has imported diffusers and done nothing else.

    All of them are forked from one process, which saves each the seconds of the imports.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["bench.models"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def resident() -> int:
    """Bytes of memory that this process holds, pages of mapped files included."""
    return read_number("/proc/self/status", "VmRSS") * 1024


def peak_resident() -> int:
    """The most that it has held since the last `reset_peak`."""
    return read_number("/proc/self/status", "VmHWM") * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def read_from_disk() -> int:
    """Bytes that the system has read from the disk for this process, pages of mapped files
    included."""
    return read_number("/proc/self/io", "read_bytes")


def read_number(path: str, key: str) -> int:
    lines = Path(path).read_text().split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
