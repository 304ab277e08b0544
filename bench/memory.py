"""Peak memory beside diffusers: a whole img2img run at 512x512, and a decode to 1024x1024.

    pip install '.[test]'
    python -m bench.memory [--dtype float32,bfloat16]

Each is in a process of its own. It prints what resident memory grows by at most: in total, and over
what the loaded weights take. The run has two steps, because more steps take no more memory.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import minisd
from bench.models import diffusers_img2img, load_diffusers
from bench.process import in_new_process, peak_resident, reset_peak, resident
from minisd import fast
from minisd.checkpoint.seeded import save_seeded

SYSTEMS = ("minisd", "minisd, plain", "diffusers")


def measure(system: str, path: Path, dtype: torch.dtype, task: str) -> tuple[int, int]:
    """In this process: bytes once the models are loaded, and at most."""
    torch.set_num_threads(os.cpu_count() or 1)
    minisd.load().text_states("")  # now the code and the libraries' buffers are in memory
    before = resident()
    if system == "diffusers":
        _text, unet, vae = load_diffusers(path, "cpu", dtype)
    else:
        sd = minisd.load(path, dtype=dtype)
        if system == "minisd":  # as the command line does
            fast.work_in_strips(sd)
            fast.pack(sd)
            fast.keep_memory()
    loaded = resident() - before
    reset_peak()
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (512, 512, 3), np.uint8))
    states, z = torch.zeros(2, 77, 768), torch.randn(1, 4, 128, 128)
    with torch.inference_mode():
        if task == "decode" and system == "diffusers":
            vae.decode(z.to(dtype))
        elif task == "decode":
            sd.vae.decode(z)
        elif system == "diffusers":
            diffusers_img2img(unet, vae, dtype)(picture, states, 2)
        else:
            settings = {"steps": 2, "strength": 1.0, "sampler": "ddim", "seed": 0}
            minisd.img2img(sd, states[:1], picture, negative_prompt=states[1:], **settings)
    return loaded, peak_resident() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32,bfloat16", help="one or more, with commas")
    args = parser.parse_args()
    print(f"{'':30} {'dtype':>9} {'loaded':>9} {'peak':>9} {'over it':>9}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd.safetensors"
        in_new_process(save_seeded, path)
        for dtype in args.dtype.split(","):
            for task, size in (("img2img", 512), ("decode", 1024)):
                for system in SYSTEMS:
                    nbytes = in_new_process(measure, system, path, getattr(torch, dtype), task)
                    loaded, peak = (n / 1e6 for n in nbytes)
                    sizes = "".join(f"{mb:7,.0f} MB" for mb in (loaded, peak, peak - loaded))
                    print(f"{f'{task}, {size}, {system}':30} {dtype:>9}{sizes}", flush=True)


if __name__ == "__main__":
    main()
