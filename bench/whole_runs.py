"""Whole runs of img2img beside others: same weights, size, steps, dtype and machine, in turn.

    pip install '.[test]'
    python -m bench.whole_runs RUNS.json [--systems minisd,engine,diffusers,cpp] [--quick]

A run goes from a picture to a picture at strength 1 with guidance 7.5: an encoding, twice as many
evaluations of the UNet as steps, a decoding. The systems:

    minisd      packed, with PyTorch
    engine      minisd with fast.use_openvino; needs the package openvino
    diffusers   its img2img pipeline
    cpp         stable-diffusion.cpp; needs the package stable-diffusion-cpp-python. It has no
                bfloat16 arithmetic: for that, its weights are float16

Minisd and diffusers run DDIM, because both visit the same timesteps with it, and their pictures are
compared. Cpp runs k_euler. Before the first round, each system does a run of one step, which is not
counted: it compiles and packs.

Each run's seconds are written to RUNS.json at once. The same command goes on from there, so the
rounds can be spread over the quiet hours of a machine.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

import minisd
from bench.models import diffusers_img2img, load_diffusers
from bench.process import in_new_process
from bench.side_by_side import machine
from minisd import fast
from minisd.checkpoint.seeded import save_seeded

PROMPT = "a fire, burning"
Run = Callable[[int], Image.Image]  # steps -> picture


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    path = Path(args.file)
    measured = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(args.model or Path(folder) / "sd.safetensors")
        if args.quick:
            save_seeded(weights, tiny=True)
        elif not args.model:
            in_new_process(save_seeded, weights)
        for dtype in args.dtype.split(","):
            key = f"{dtype}, {args.size} pixels, {args.steps} steps, {machine(torch.device('cpu'))}"
            found = measured.get(key, {})
            n_rounds = min(len(found.get(system, [])) for system in args.systems)  # whole ones
            times = {system: found.get(system, [])[:n_rounds] for system in args.systems}
            measured[key], n_missing = times, args.rounds - n_rounds
            if n_missing > 0:
                makers = {system: MAKERS[system] for system in args.systems}
                picture = noise_picture(args.size)
                runs = {
                    system: maker(weights, getattr(torch, dtype), picture)
                    for system, maker in makers.items()
                }
                pictures = {system: run(1) for system, run in runs.items()}  # not counted
                for _ in range(n_missing):
                    for system, run in runs.items():
                        start = time.perf_counter()
                        pictures[system] = run(args.steps)
                        times[system].append(time.perf_counter() - start)
                        path.write_text(json.dumps(measured, indent=1))
                        print(f"{key}: {system} {times[system][-1]:.1f} s", flush=True)
                compare(pictures)
                del runs
            print("\n".join(table(key, times)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", metavar="RUNS.json", help="where the seconds are kept")
    parser.add_argument("--systems", default="minisd,engine,diffusers", help="with commas")
    parser.add_argument("--model", help="an SD 1.x checkpoint, .safetensors")
    parser.add_argument("--dtype", default="bfloat16,float32", help="one or more, with commas")
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="in all, those in the file included")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="a small model, to see that it runs")
    args = parser.parse_args()
    args.systems = args.systems.split(",")
    if not set(args.systems) <= set(MAKERS):
        parser.error(f"--systems can be {', '.join(MAKERS)}")
    if args.quick:
        args.size, args.steps, args.rounds, args.threads = 64, 2, 2, 1
    return args


# ---- the systems ---------------------------------------------------------------------------------


def noise_picture(size: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (size, size, 3), np.uint8))


def minisd_run(path: Path, dtype: torch.dtype, picture: Image.Image, engine: bool = False) -> Run:
    sd = minisd.load(path, dtype=dtype)
    if engine:
        fast.use_openvino(sd, folder=path.parent / "converted")
    else:
        fast.work_in_strips(sd)
        fast.pack(sd)
    settings = {"strength": 1.0, "guidance": 7.5, "sampler": "ddim", "seed": 0}
    return lambda steps: minisd.img2img(sd, PROMPT, picture, steps=steps, **settings).image


def diffusers_run(path: Path, dtype: torch.dtype, picture: Image.Image) -> Run:
    text_encoder, unet, vae = load_diffusers(path, "cpu", dtype)
    # As minisd does, encode to the mean.
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
    draw, tokens = diffusers_img2img(unet, vae, dtype), minisd.tokenizer.Tokenizer()

    def run(steps: int) -> Image.Image:
        with torch.inference_mode():
            states = text_encoder(tokens([PROMPT, ""])).last_hidden_state
            return draw(picture, states, steps)

    return run


def cpp_run(path: Path, dtype: torch.dtype, picture: Image.Image) -> Run:
    package = import_module("stable_diffusion_cpp")
    kind = {torch.float32: "f32", torch.bfloat16: "f16"}[dtype]
    threads = torch.get_num_threads()
    sd = package.StableDiffusion(str(path), wtype=kind, n_threads=threads, verbose=False)
    size = dict(zip(("width", "height"), picture.size, strict=True))
    settings = {**size, "strength": 1.0, "cfg_scale": 7.5, "sample_method": "euler", "seed": 0}
    return lambda steps: sd.generate_image(
        prompt=PROMPT, init_image=picture, sample_steps=steps, **settings
    )[0]


MAKERS: dict[str, Callable[[Path, torch.dtype, Image.Image], Run]] = {
    "minisd": minisd_run,
    "engine": partial(minisd_run, engine=True),
    "diffusers": diffusers_run,
    "cpp": cpp_run,
}


# ---- the results ---------------------------------------------------------------------------------


def compare(pictures: dict[str, Image.Image]) -> None:
    """In bfloat16 diffusers draws other noise, so there its picture differs."""
    first, *others = [system for system in pictures if system != "cpp"]
    for system in others:
        a, b = (np.asarray(pictures[name]).astype(int) for name in (first, system))
        print(f"{first} and {system}: at most {abs(a - b).max()} of 255 apart")


def table(key: str, times: dict[str, list[float]]) -> list[str]:
    """Medians, and each system's time divided by the first one's: median and range of rounds."""
    (_, ours), *_ = times.items()
    lines = [f"\n{key}", f"{'':12}{'median':>8}  {'time / first':13} of rounds"]
    for system, theirs in times.items():
        ratios = [b / a for a, b in zip(ours, theirs)]
        lines.append(
            f"{system:12}{statistics.median(theirs):7.1f} s {statistics.median(ratios):8.2f}"
            f"      {min(ratios):.2f} to {max(ratios):.2f}"
        )
    return lines


if __name__ == "__main__":
    main()
