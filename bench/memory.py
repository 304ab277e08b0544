"""Peak memory beside diffusers: a whole img2img run at 512x512, and a decode to 1024x1024.

    pip install '.[test]'
    python bench/memory.py [--dtype float32,bfloat16]

Each in a process of its own: what its resident memory grew by at most, in total and over what the
weights take once they are loaded. Two steps: more of them take no more.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from models import diffusers_img2img, load_diffusers, make_weights
from process import alone, most_resident, resident, start_anew

import minisd
from minisd import fast


def job(which: str, path: Path, dtype: torch.dtype, what: str) -> tuple[int, int]:
    """In this process: bytes once the models are loaded, and at most."""
    torch.set_num_threads(os.cpu_count() or 1)
    if which == "diffusers":  # its code too
        from diffusers import StableDiffusionImg2ImgPipeline  # noqa: F401
    minisd.load().text_states("")  # code and the buffers of libraries are in memory now

    before = resident()
    if which == "diffusers":
        _text, unet, vae = load_diffusers(path, "cpu", dtype)
    else:
        sd = minisd.load(path, dtype=dtype)
        if which == "minisd":  # as the command line does
            fast.work_in_strips(sd)
            if dtype != torch.float32:
                fast.pack(sd)
    loaded = resident() - before
    start_anew()
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (512, 512, 3), np.uint8))
    states = torch.zeros(2, 77, 768)
    with torch.inference_mode():
        if what == "decode":
            z = torch.randn(1, 4, 128, 128)
            sd.vae.decode(z) if which != "diffusers" else vae.decode(z.to(dtype)).sample
        elif which != "diffusers":
            settings = {"steps": 2, "strength": 1.0, "sampler": "ddim", "seed": 0}
            minisd.img2img(sd, states[:1], picture, negative_prompt=states[1:], **settings)
        else:
            diffusers_img2img(unet, vae, dtype)(picture, states, steps=2)
    return loaded, most_resident() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32,bfloat16", help="one or more, with commas")
    args = parser.parse_args()
    print(f"{'':30} {'dtype':>9} {'loaded':>9} {'peak':>9} {'over it':>9}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd.safetensors"
        alone(make_weights, path)
        for dtype in args.dtype.split(","):
            for what, size in (("img2img", 512), ("decode", 1024)):
                for which in ("minisd", "minisd, plain", "diffusers"):
                    found = alone(job, which, path, getattr(torch, dtype), what)
                    loaded, peak = (n / 1e6 for n in found)
                    name = f"{what}, {size}, {which}"
                    sizes = "".join(f"{mb:7,.0f} MB" for mb in (loaded, peak, peak - loaded))
                    print(f"{name:30} {dtype:>9}{sizes}", flush=True)


if __name__ == "__main__":
    main()
