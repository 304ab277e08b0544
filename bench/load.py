"""Peak memory and time of loading a checkpoint, for each dtype in the file and each asked for.

    pip install '.[test]'
    python -m bench.load [FILE]

Without FILE it makes one of SD 1.x's full size (4.3 GB on disk). Each load is in a process of its
own that has imported everything. The peak is what resident memory grows by at most during
`minisd.load`. The ratio is the peak over the bytes of the weights in the dtype asked for (the text
encoder's in float32).
"""

import argparse
import gc
import os
import tempfile
import time
import warnings
from pathlib import Path

import torch

import minisd
from bench.models import load_diffusers
from bench.process import in_new_process, peak_resident, read_from_disk, reset_peak, resident
from minisd.checkpoint.seeded import save_seeded

PAGE = 4096  # bytes


def measure_load(
    system: str,
    path: Path,
    small: Path,
    dtype: torch.dtype,
    place: str = "cache",
    device: str = "cpu",
    threads: int = 1,
) -> dict[str, float]:
    """Seconds, peak memory and bytes read from disk, to load a file and to touch its weights.

    It measures in this process, with minisd or diffusers. To touch all weights, it reads one number
    of each page: a mapped file is only read when it is touched, and otherwise the first picture
    would wait for that. `place` is where the file is before: in the system's "cache", or only on
    "disk". `small` is another file, which is loaded first.
    """
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")

    def load(path: Path) -> tuple[torch.nn.Module, ...]:
        if system == "diffusers":
            return load_diffusers(path, device, dtype)
        sd = minisd.load(path, device=device, dtype=dtype)
        return sd.text_encoder, sd.unet, sd.vae

    load(small)  # now the code and the libraries' buffers are in memory
    gc.collect()
    {"cache": put_in_cache, "disk": remove_from_cache}[place](path)
    reset_peak()
    memory_before, disk_before, start = resident(), read_from_disk(), time.perf_counter()

    def since_start(task: str) -> dict[str, float]:
        seconds = time.perf_counter() - start
        peak, disk = peak_resident() - memory_before, read_from_disk() - disk_before
        return {task: seconds, f"{task}_peak": peak, f"{task}_read": disk}

    weights = [weight for model in load(path) for weight in model.parameters()]
    measured = since_start("load")
    touched = (weight.flatten()[:: PAGE // weight.element_size()] for weight in weights)
    total = sum(numbers.sum(dtype=torch.float64).item() for numbers in touched)
    nbytes = sum(weight.numel() * weight.element_size() for weight in weights)
    # Both systems must agree on the total.
    return measured | since_start("touch") | {"total": total, "weights": nbytes}


def put_in_cache(path: Path) -> None:
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass


def remove_from_cache(path: Path) -> None:
    """It has an effect on a disk, and while no process has the file mapped."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # pages that are not written yet would stay
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path)
    file = parser.parse_args().file
    print(
        f"{'in the file':>12} {'asked for':>10} {'weights':>9} {'peak':>9} {'ratio':>6} {'time':>7}"
    )
    with tempfile.TemporaryDirectory() as folder:
        small = save_seeded(Path(folder) / "small.safetensors", tiny=True)
        if file:
            print_loads(file, small, file.suffix)
            return
        for stored in ("float32", "float16"):
            path = Path(folder) / f"{stored}.safetensors"
            in_new_process(save_seeded, path, False, getattr(torch, stored))
            print_loads(path, small, stored)
            path.unlink()


def print_loads(path: Path, small: Path, stored: str) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        row = in_new_process(measure_load, "minisd", path, small, getattr(torch, dtype))
        weights, peak = row["weights"] / 1e6, row["load_peak"] / 1e6
        numbers = f"{weights:6.0f} MB {peak:6.0f} MB {peak / weights:6.3f} {row['load']:5.1f} s"
        print(f"{stored:>12} {dtype:>10} {numbers}")


if __name__ == "__main__":
    main()
