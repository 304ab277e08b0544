"""minisd beside diffusers (and transformers), in one run: same weights, inputs, dtype and machine.

    pip install diffusers accelerate
    python bench/side_by_side.py [--model FILE] [--device cuda] [--dtype float32,bfloat16] [--quick]

Each line is timed in pairs, first one then the other. Told are the medians, the middle of the
pairs' ratios (above 1: minisd is faster), their spread, minisd's first call over its later ones,
the share of the machine's own rate of matrix products, measured in the same run, that both reach,
and how far the two results are apart. Without FILE, weights of SD 1.x's size are made on the spot:
speed does not depend on what they are.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

import minisd
from minisd import fast
from minisd.checkpoint import PREFIXES
from minisd.guidance import guided
from minisd.schedule import sigma_to_t
from minisd.unet import UNet
from tests.conftest import manifest

UNITS = {"matrix product": "TFLOP/s", "3x3 convolution": "TFLOP/s", "copy": "GB/s"}


def main() -> None:
    args = arguments()
    device, rows = torch.device(args.device), []
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    print(f"torch {torch.__version__}, diffusers {version('diffusers')}, {machine(device)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(args.model) if args.model else make_weights(Path(folder) / "sd.safetensors")
        for name in args.dtype.split(","):
            dtype = getattr(torch, name)
            rates = ceiling(device, dtype)
            print(f"\n{name}: " + ", ".join(f"{k} {v:.2f} {UNITS[k]}" for k, v in rates.items()))
            print(
                f"{'':28} {'minisd':>9} {'diffusers':>9} {'ratio':>6}  {'spread':13}"
                f"{'first':>6}  {'share':12} apart"
            )
            for row in compare(path, device, dtype, args):
                work = row.get("tflop", 0) / rates["matrix product"]
                row["shares"] = [work / row[key] for key in ("minisd", "diffusers")]
                rows.append({"dtype": name, **row})
                spread = f"{row['low']:.2f} to {row['high']:.2f}"
                times = f"{seconds(row['minisd'])} {seconds(row['diffusers'])}"
                share = "{:.2f} and {:.2f}".format(*row["shares"]) if work else ""
                first = f"{row['first']:5.1f}x" if row["first"] else ""
                tail = f"{row['ratio']:6.2f}  {spread:13}{first:>6}  {share:13} {row['apart']:.0e}"
                print(f"{row['what']:28} {times} {tail}", flush=True)
            rows.append({"dtype": name, "ceiling": rates})
    if args.json:
        facts = {"machine": machine(device), "torch": torch.__version__}
        facts["diffusers"] = version("diffusers")
        Path(args.json).write_text(json.dumps({**facts, "rows": rows}, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="an SD 1.x checkpoint, .safetensors")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32,bfloat16", help="one or more, with commas")
    parser.add_argument("--sizes", default="256,384,512", help="pixels a side, with commas")
    parser.add_argument("--batches", default="1", help="pictures in a UNet call, with commas")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plain", action="store_true", help="without minisd.fast")
    parser.add_argument("--runs", action="store_true", help="whole runs too: 20 steps, minutes")
    parser.add_argument("--quick", action="store_true", help="one size, two pairs")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.pairs = "256", 2
    return args


def compare(path: Path, device: torch.device, dtype: torch.dtype, args: argparse.Namespace):
    """Rows of the table, one after the other."""
    start = time.perf_counter()
    sd = minisd.load(path, device=device, dtype=dtype)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    text, unet, vae = load_diffusers(path, device, dtype)
    theirs = time.perf_counter() - start
    if not args.plain:
        start = time.perf_counter()
        fast.work_in_strips(sd)
        if device.type == "cpu":
            fast.pack(sd)
        print(f"(packing took {time.perf_counter() - start:.1f} s)")
    yield row("load, once", [ours], [theirs], 0.0)

    tokens = sd.tokenizer(["a fire, burning", ""]).to(device)
    with torch.inference_mode():
        yield pair(
            "text, two prompts",
            device,
            args.pairs,
            lambda: sd.text_encoder(tokens),
            lambda: text(tokens).last_hidden_state,
        )
        states = sd.text_encoder(tokens)
        for size in map(int, args.sizes.split(",")):
            for batch in map(int, args.batches.split(",")):
                found = unet_call(sd, unet, states, size, batch, device, dtype)
                name = f"guided UNet call, {size}" + f", batch {batch}" * (batch > 1)
                tflop = batch * guided_tflop(size)
                yield {**pair(name, device, args.pairs, *found), "tflop": tflop}
            for what, mine, others in autoencoder(sd, vae, size, device, dtype):
                yield pair(f"{what}, {size}", device, args.pairs, mine, others)
            if args.runs:
                yield whole_run(sd, (unet, vae), size, device, dtype, args.pairs)


def guided_tflop(size: int) -> float:
    """Of the textbook call, all of it for both prompts: 1.607 at 512, of which attention's own
    products are 0.252."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet()(torch.empty(2, 4, size // 8, size // 8), torch.empty(2), torch.empty(2, 77, 768))
    return counter.get_total_flops() / 1e12


def unet_call(sd, unet, states: torch.Tensor, size: int, batch: int, device, dtype):
    """minisd's and diffusers', at sigma 3 and guidance 7.5."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, size // 8, size // 8, generator=rng).to(device)
    predict = guided(sd.unet, states[:1], states[1:], 7.5)
    both = states.flip(0).repeat_interleave(batch, dim=0).to(dtype)

    def their_eps() -> torch.Tensor:
        x_in = (x / (3.0**2 + 1) ** 0.5).to(dtype).repeat(2, 1, 1, 1)
        eps = unet(x_in, sigma_to_t(3.0), encoder_hidden_states=both).sample.float()
        eps_uncond, eps_cond = eps.chunk(2)
        return eps_uncond + 7.5 * (eps_cond - eps_uncond)

    return lambda: predict(x, 3.0), their_eps


def autoencoder(sd, vae, size: int, device, dtype):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, size // 8, size // 8, generator=rng).to(device)
    image = torch.rand(1, 3, size, size, generator=rng).to(device) * 2 - 1

    def their_moments() -> torch.Tensor:
        return vae.encode(image.to(dtype)).latent_dist.parameters.float()

    def their_image() -> torch.Tensor:
        return vae.decode((x / 0.18215).to(dtype)).sample.float()

    yield "encode", lambda: sd.vae.moments(image), their_moments
    yield "decode", lambda: sd.vae.decode(x), their_image


def whole_run(sd, theirs, size: int, device, dtype, pairs: int) -> dict[str, Any]:
    """img2img, DDIM, 20 steps at strength 1, both from a picture to a picture. (diffusers' k_lms
    img2img computes something else, so DDIM it is; it runs the same timesteps.)"""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    pipe = img2img_pipeline(*theirs)
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()  # as minisd
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (size, size, 3), np.uint8))
    states = sd.text_encoder(sd.tokenizer(["a fire, burning", ""]))

    def ours() -> torch.Tensor:
        settings = {"steps": 20, "strength": 1.0, "sampler": "ddim", "seed": 0}
        result = minisd.img2img(sd, states[:1], picture, negative_prompt=states[1:], **settings)
        return torch.from_numpy(np.array(result.image)).float()

    def diffusers() -> torch.Tensor:
        (image,) = pipe(
            image=picture,
            strength=1.0,
            prompt_embeds=states[:1].to(dtype),
            negative_prompt_embeds=states[1:].to(dtype),
            num_inference_steps=20,
            guidance_scale=7.5,
            generator=torch.Generator().manual_seed(0),
        ).images
        return torch.from_numpy(np.array(image)).float()

    return pair(f"img2img, 20 steps, {size}", device, min(pairs, 3), ours, diffusers)


# ---- timing ------------------------------------------------------------------------------------


def pair(what: str, device, pairs: int, ours: Callable, theirs: Callable) -> dict[str, Any]:
    start = time.perf_counter()
    a = ours()  # once, not counted
    first = time.perf_counter() - start
    b = theirs()
    apart = ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for run, into in ((ours, times[0]), (theirs, times[1])):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            into.append(time.perf_counter() - start)
    return row(what, *times, apart, first)


def row(
    what: str, ours: list[float], theirs: list[float], apart: float, first: float = 0.0
) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(ours, theirs)]
    return {
        "what": what,
        "minisd": statistics.median(ours),
        "diffusers": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "first": first / statistics.median(ours),
        "apart": apart,
    }


def seconds(value: float) -> str:
    return f"{value * 1000:6.0f} ms" if value < 10 else f"{value:7.1f} s"


def ceiling(device, dtype) -> dict[str, float]:
    """What the machine does of the two things that a UNet call is made of, and of copying."""

    def best(run: Callable, n: int = 5) -> float:
        times = []
        for _ in range(n + 1):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    with torch.inference_mode():
        n = 8192 if device.type == "cuda" else 2048
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        matrix = 2 * n**3 / best(lambda: torch.mm(a, b)) / 1e12
        x = torch.randn(2, 640, 32, 32, device=device).to(dtype)
        w = torch.randn(640, 640, 3, 3, device=device).to(dtype)
        conv = 2 * 2 * 640 * 640 * 9 * 32 * 32 / best(lambda: F.conv2d(x, w, padding=1)) / 1e12
        big = torch.empty(1 << 27, dtype=torch.uint8, device=device)
        copy = 2 * (1 << 27) / best(big.clone) / 1e9
    return {"matrix product": matrix, "3x3 convolution": conv, "copy": copy}


def machine(device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().split("\n")
         if line.startswith("model name")), "CPU")  # fmt: skip
    return f"{name}, {torch.get_num_threads()} threads"


# ---- weights -----------------------------------------------------------------------------------


def make_weights(path: Path) -> Path:
    """A file of SD 1.x's names and shapes, each tensor seeded by its name, scaled by its size."""
    state = {}
    for key, shape in manifest().items():
        if "." not in key or "position_ids" in key:
            continue
        rng = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        z = torch.randn(shape, generator=rng)
        if len(shape) == 1:
            state[key] = 1 + 0.05 * z if key.endswith(".weight") else 0.02 * z
        else:
            scale = 0.02 if "embedding" in key else float(np.prod(shape[1:])) ** -0.5
            state[key] = scale * z
    save_file(state, path)
    return path


def img2img_pipeline(unet, vae):
    """diffusers' img2img by DDIM on SD's schedule; it wants text states for prompts."""
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    pipe = StableDiffusionImg2ImgPipeline(  # a text encoder would force its own dtype on all
        vae, None, None, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_diffusers(path: Path, device, dtype):
    """diffusers' and transformers' models with the file's weights, by diffusers' own converter."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as convert
    from transformers import CLIPTextConfig, CLIPTextModel

    state = load_file(path)
    with torch.device("meta"):
        unet = UNet2DConditionModel(64, cross_attention_dim=768, attention_head_dim=8)
        widths, n = (128, 256, 512, 512), 4
        vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * n, latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * n, block_out_channels=widths,
            layers_per_block=2)  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072,
            num_hidden_layers=12, num_attention_heads=12, eos_token_id=49407))  # fmt: skip
    parts = [
        (unet, convert.convert_ldm_unet_checkpoint(state, unet.config), dtype),
        (vae, convert.convert_ldm_vae_checkpoint(state, vae.config), dtype),
    ]
    for model, converted, kind in parts:
        weights = {key: value.to(kind) for key, value in converted.items()}
        model.load_state_dict(weights, strict=True, assign=True)
        model.to(device).eval().requires_grad_(False)
    prefix = PREFIXES["text_encoder"]
    words = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    names = text.state_dict()
    level = "text_model." if any(key.startswith("text_model.") for key in names) else ""
    text = CLIPTextModel(text.config)  # its buffers are made in the constructor
    text.load_state_dict({level + key: value for key, value in words.items()}, strict=False)
    del state
    gc.collect()
    return text.to(device).eval().requires_grad_(False), unet, vae


if __name__ == "__main__":
    main()
