"""Peak memory and time of loading a checkpoint, for each dtype in the file and each asked for.

    pip install '.[test]'
    python bench/load.py [FILE]

Without FILE one of SD 1.x's full size is made (4.3 GB on disk). Memory is what the peak resident
set grows by during `minisd.load`, in a process of its own that has imported everything, over the
bytes of the weights in the dtype asked for (the text encoder's in float32).
"""

import gc
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from models import load_diffusers, make_weights
from process import alone, fetched, most_resident, resident, start_anew

import minisd

PAGE = 4096  # bytes


def loading(
    system: str,
    path: Path,
    small: Path,
    dtype: torch.dtype,
    place: str = "cache",
    device: str = "cpu",
    threads: int = 1,
) -> dict[str, float]:
    """Seconds, peak memory, and bytes fetched from the disk in this process: for loading the file
    with minisd or diffusers, and for loading it and touching every weight, one number of each page.

    A mapped file is read when it is touched: after a load that only maps it that is still to come,
    and would else be counted with the first picture. `place` is where the file is before, in the
    system's cache or only on the disk; `small` is another, loaded first.
    """
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")

    def load(path: Path) -> tuple[torch.nn.Module, ...]:
        if system == "diffusers":
            return load_diffusers(path, device, dtype)
        sd = minisd.load(path, device=device, dtype=dtype)
        return sd.text_encoder, sd.unet, sd.vae

    load(small)  # code and libraries' buffers are in memory now
    gc.collect()
    {"cache": put_in_cache, "disk": put_out_of_cache}[place](path)
    start_anew()
    before, read, start = resident(), fetched(), time.perf_counter()

    def so_far(what: str) -> dict[str, float]:
        seconds = time.perf_counter() - start
        peak, disk = most_resident() - before, fetched() - read
        return {what: seconds, f"{what}_peak": peak, f"{what}_read": disk}

    weights = [weight for model in load(path) for weight in model.parameters()]
    found = so_far("load")
    touched = (weight.flatten()[:: PAGE // weight.element_size()] for weight in weights)
    total = sum(numbers.sum(dtype=torch.float64).item() for numbers in touched)
    found |= so_far("touch") | {"total": total}  # on which both systems should agree
    return found | {"weights": sum(weight.numel() * weight.element_size() for weight in weights)}


def put_in_cache(path: Path) -> None:
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass


def put_out_of_cache(path: Path) -> None:
    """Works on a disk, and while no process has the file mapped."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # pages that are not written yet would stay
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    print(
        f"{'in the file':>12} {'asked for':>10} {'weights':>9} {'peak':>9} {'ratio':>6} {'time':>7}"
    )
    with tempfile.TemporaryDirectory() as folder:
        small = make_weights(Path(folder) / "small.safetensors", small=True)
        given = [Path(sys.argv[1])] if len(sys.argv) > 1 else []
        for stored in given or ("float32", "float16"):
            path = stored if given else Path(folder) / f"{stored}.safetensors"
            if not given:
                alone(make_weights, path, getattr(torch, stored))
            for dtype in ("float32", "bfloat16", "float16"):
                got = alone(loading, "minisd", path, small, getattr(torch, dtype))
                ratio = got["load_peak"] / got["weights"]
                print(
                    f"{stored if not given else path.suffix:>12} {dtype:>10} "
                    f"{got['weights'] / 1e6:6.0f} MB {got['load_peak'] / 1e6:6.0f} MB "
                    f"{ratio:6.3f} {got['load']:5.1f} s"
                )
            if not given:
                path.unlink()


if __name__ == "__main__":
    main()
