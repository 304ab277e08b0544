"""A measurement in a process of its own, and what that process takes."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def alone(function: Callable, *given: Any) -> Any:
    """function(*given) in a fresh process that has imported diffusers and done nothing.

    All are forked from one that stays so, which saves each of them the seconds of the imports.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["models"])
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # where it finds that
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *given).result()


def resident() -> int:
    """Bytes of memory that this process holds, pages of mapped files among them."""
    return number("/proc/self/status", "VmRSS") * 1024


def most_resident() -> int:
    """The most that it has held since the last `start_anew`."""
    return number("/proc/self/status", "VmHWM") * 1024


def start_anew() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def fetched() -> int:
    """Bytes that the system has fetched from the disk for this process, whether it read them or
    touched them in a mapped file."""
    return number("/proc/self/io", "read_bytes")


def number(path: str, key: str) -> int:
    lines = Path(path).read_text().split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
