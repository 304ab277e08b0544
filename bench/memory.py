"""Peak memory beside diffusers: a whole img2img run at 512x512, and a decode to 1024x1024.

    pip install diffusers accelerate
    python bench/memory.py [--dtype float32,bfloat16]

Each in a process of its own: what its resident memory grew by at most, in total and over what the
weights take once they are loaded. Two steps: more of them take no more.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHILD = """
import json, sys
sys.path[:0] = {paths}
import numpy as np, torch
from PIL import Image
import minisd, side_by_side
from minisd import fast
which, path, dtype, job = sys.argv[1:]
dtype = getattr(torch, dtype)
if which == "diffusers":  # its code too
    import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img
minisd.load().text_states("")  # code and the buffers of libraries are in memory now

def status(key):
    lines = open("/proc/self/status").read().split("\\n")
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

before = status("VmRSS")
if which == "diffusers":
    text, unet, vae = side_by_side.load_diffusers(path, torch.device("cpu"), dtype)
else:
    sd = minisd.load(path, dtype=dtype)
    if which == "minisd":  # as the command line does
        fast.work_in_strips(sd)
        if dtype != torch.float32:
            fast.pack(sd)
loaded = status("VmRSS") - before
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (512, 512, 3), np.uint8))
states = torch.zeros(2, 77, 768)
with torch.inference_mode():
    if job == "decode":
        z = torch.randn(1, 4, 128, 128)
        sd.vae.decode(z) if which != "diffusers" else vae.decode(z.to(dtype)).sample
    elif which != "diffusers":
        settings = dict(steps=2, strength=1.0, sampler="ddim", seed=0)
        minisd.img2img(sd, states[:1], picture, negative_prompt=states[1:], **settings)
    else:
        pipe = side_by_side.img2img_pipeline(unet, vae)
        pipe(image=picture, strength=1.0, prompt_embeds=states[:1].to(dtype), guidance_scale=7.5,
            negative_prompt_embeds=states[1:].to(dtype), num_inference_steps=2)
peak = status("VmHWM") - before
print(json.dumps(dict(loaded=loaded, peak=peak)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32,bfloat16", help="one or more, with commas")
    args = parser.parse_args()
    child = CHILD.format(paths=[str(ROOT), str(ROOT / "bench")])
    print(f"{'':24} {'dtype':>9} {'loaded':>9} {'peak':>9} {'over it':>9}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd.safetensors"
        made = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'bench')]}; import side_by_side"
        made += f", pathlib; side_by_side.make_weights(pathlib.Path({str(path)!r}))"
        subprocess.run([sys.executable, "-c", made], check=True)
        for dtype in args.dtype.split(","):
            for job in ("img2img", "decode"):
                for which in ("minisd", "minisd, plain", "diffusers"):
                    command = [sys.executable, "-c", child, which, str(path), dtype, job]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    found = json.loads(done.stdout.splitlines()[-1])
                    loaded, peak = (found[key] / 1e6 for key in ("loaded", "peak"))
                    name = f"{job}, {'1024' if job == 'decode' else '512'}, {which}"
                    sizes = "".join(f"{mb:7,.0f} MB" for mb in (loaded, peak, peak - loaded))
                    print(f"{name:24} {dtype:>9}{sizes}", flush=True)


if __name__ == "__main__":
    main()
