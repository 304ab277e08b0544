"""minisd beside diffusers (and transformers), in one run: same weights, inputs, dtype and machine.

    pip install '.[test]'
    python bench/side_by_side.py [--model FILE] [--device cuda] [--dtype float32,bfloat16] [--quick]

Each line is timed in pairs, first one then the other. Told are the medians, the middle of the
pairs' ratios (above 1: minisd is faster), their spread, minisd's first call over its later ones,
how far the two results are apart, and the share of the machine's own rate of matrix products,
measured in the same run, that both reach. Loads are in processes of their own, and tell peak memory
and what was fetched from the disk. Without FILE, weights of SD 1.x's size are made on the spot:
speed does not depend on what they are. `--quick` makes small ones, to see that all of it works.

`--others openvino,onnxruntime` (pip install '.[bench]') takes those in turn with the two.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

import others
from load import loading
from models import diffusers_img2img, load_diffusers, make_weights
from process import alone

import minisd
from minisd import fast
from minisd.checkpoint import read_unet_table
from minisd.guidance import guided
from minisd.unet import SD1, Table, UNet

UNITS = {"matrix product": "TFLOP/s", "3x3 convolution": "TFLOP/s", "copy": "GB/s"}


def main() -> None:
    args = arguments()
    device, rows = torch.device(args.device), []
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, diffusers {version('diffusers')}, {machine(device)}")
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "sd.safetensors", Path(folder) / "small.safetensors"
        make_weights(small, small=True)
        if args.model or args.quick:
            path = Path(args.model or small)
        else:
            alone(make_weights, path)
        dtypes = {name: getattr(torch, name) for name in args.dtype.split(",")}
        # First, while no model here has the file mapped: it would stay in the cache.
        loaded = {name: [*loads(path, small, dtype, args)] for name, dtype in dtypes.items()}
        for name, dtype in dtypes.items():
            rates = ceiling(device, dtype)
            print(f"\n{name}: " + ", ".join(f"{k} {v:.2f} {UNITS[k]}" for k, v in rates.items()))
            print(
                f"{'':33} {'beside':11} {'minisd':>9} {'it':>9} {'ratio':>6}  {'spread':13}"
                f"{'first':>6}  apart"
            )
            for row in chain(loaded[name], compare(path, device, dtype, args)):
                work = row.get("tflop", 0) / rates["matrix product"]
                row["shares"] = [work / row[key] for key in ("minisd", "it")]
                rows.append({"dtype": name, **row})
                print(told(row), flush=True)
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
    parser.add_argument(
        "--batches", default="1,2,4", help="pictures in a UNet call of the smallest size"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--plain", action="store_true", help="without minisd.fast")
    parser.add_argument("--runs", action="store_true", help="whole runs too: 20 steps, minutes")
    parser.add_argument("--others", default="", help=f"{', '.join(others.SYSTEMS)}, on the CPU")
    parser.add_argument("--quick", action="store_true", help="all of it, with a small model")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    args.others = args.others.split(",") if args.others else []
    if not set(args.others) <= set(others.SYSTEMS):
        parser.error(f"--others are of {', '.join(others.SYSTEMS)}")
    if args.quick:
        args.sizes, args.pairs, args.runs, args.threads = "64", 2, True, 1
    return args


def compare(
    path: Path, device: torch.device, dtype: torch.dtype, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Rows of all that is done with models once they are loaded, one after the other."""
    sd = minisd.load(path, device=device, dtype=dtype)
    table = read_unet_table({name: w.shape for name, w in sd.unet.state_dict().items()})
    text, unet, vae = load_diffusers(path, device, dtype)
    if not args.plain:
        start = time.perf_counter()
        fast.work_in_strips(sd)
        if device.type == "cpu":
            fast.pack(sd)
        print(f"(packing took {time.perf_counter() - start:.1f} s)")

    unets = {
        "minisd": sd.unet,
        "diffusers": lambda x, t, context: unet(x.to(dtype), t, context.to(dtype)).sample.float(),
    }
    encoders = {
        "minisd": sd.vae.moments,
        "diffusers": lambda image: vae.encode(image.to(dtype)).latent_dist.parameters.float(),
    }
    decoders = {
        "minisd": sd.vae.decode,
        "diffusers": lambda x: vae.decode((x / 0.18215).to(dtype)).sample.float(),
    }
    for system in args.others:
        if dtype in others.DTYPES[system]:
            plain = minisd.load(path)
            settings = (dtype, args.threads)
            unets[system] = others.compiled(system, plain.unet, *settings)
            moments, decode = (others.Method(plain.vae, name) for name in ("moments", "decode"))
            encoders[system] = others.compiled(system, moments, *settings)
            decoders[system] = others.compiled(system, decode, *settings)

    tokens = sd.tokenizer(["a fire, burning", ""]).to(device)
    texts = {
        "minisd": lambda: sd.text_encoder(tokens),
        "diffusers": lambda: text(tokens).last_hidden_state,
    }
    with torch.inference_mode():
        yield from pairs("text, two prompts", texts, device, args.pairs)
        states = sd.text_encoder(tokens)
        sizes = sorted(map(int, args.sizes.split(",")))
        for size in sizes:
            rng = torch.Generator().manual_seed(0)
            image = torch.rand(1, 3, size, size, generator=rng).to(device) * 2 - 1
            for batch in map(int, args.batches.split(",") if size == sizes[0] else "1"):
                x = torch.randn(batch, 4, size // 8, size // 8, generator=rng).to(device)
                calls = {  # at sigma 3, guidance 7.5
                    system: partial(guided(network, states[:1], states[1:], 7.5), x, 3.0)
                    for system, network in unets.items()
                }
                name = f"guided UNet call, {size}" + f", each of {batch}" * (batch > 1)
                tflop = guided_tflop(size, table)
                for row in pairs(name, calls, device, args.pairs, batch):
                    yield {**row, "tflop": tflop}
            calls = {system: partial(encode, image) for system, encode in encoders.items()}
            yield from pairs(f"encode, {size}", calls, device, args.pairs)
            calls = {system: partial(decode, x[:1]) for system, decode in decoders.items()}
            yield from pairs(f"decode, {size}", calls, device, args.pairs)
            if args.runs:
                name, runs = f"img2img, 20 steps, {size}", whole_runs(sd, unet, vae, size, dtype)
                yield from pairs(name, runs, device, min(args.pairs, 3))


def loads(path: Path, small: Path, dtype, args) -> Iterator[dict[str, Any]]:
    """Loading, with the file in the system's cache and with all of it still on the disk."""
    for place in ("cache", "disk"):
        found: dict[str, list[dict[str, float]]] = {"minisd": [], "diffusers": []}
        for _ in range(args.pairs):
            for system, into in found.items():
                given = (path, small, dtype, place, args.device, args.threads)
                into.append(alone(loading, system, *given))
        ours, theirs = found.values()
        apart = abs(ours[0]["total"] / theirs[0]["total"] - 1)
        for what, name in {"load": "load", "touch": "load and touch"}.items():
            times = ([one[what] for one in each] for each in found.values())
            yield {
                **row(f"{name}, from {place}", "diffusers", *times, apart),
                "peak": [max(one[f"{what}_peak"] for one in each) for each in found.values()],
                "read": [max(one[f"{what}_read"] for one in each) for each in found.values()],
            }


def guided_tflop(size: int, table: Table = SD1) -> float:
    """Of the textbook call, all of it for both prompts: 1.607 at 512, of which attention's own
    products are 0.252."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x, context = torch.empty(2, 4, size // 8, size // 8), torch.empty(2, 77, table.c_context)
        UNet(table)(x, torch.empty(2), context)
    return counter.get_total_flops() / 1e12


def whole_runs(sd, unet, vae, size: int, dtype) -> dict[str, Callable]:
    """img2img, DDIM, 20 steps at strength 1, both from a picture to a picture. (diffusers' k_lms
    img2img computes something else, so DDIM it is; it runs the same timesteps.)"""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    theirs = diffusers_img2img(unet, vae, dtype)
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()  # as minisd
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (size, size, 3), np.uint8))
    states = sd.text_encoder(sd.tokenizer(["a fire, burning", ""]))

    def ours() -> torch.Tensor:
        settings = {"steps": 20, "strength": 1.0, "sampler": "ddim", "seed": 0}
        result = minisd.img2img(sd, states[:1], picture, negative_prompt=states[1:], **settings)
        return torch.from_numpy(np.array(result.image)).float()

    def diffusers() -> torch.Tensor:
        return torch.from_numpy(np.array(theirs(picture, states, steps=20))).float()

    return {"minisd": ours, "diffusers": diffusers}


# ---- timing ------------------------------------------------------------------------------------


def pairs(
    what: str, runs: dict[str, Callable[[], torch.Tensor]], device, times: int, pictures: int = 1
) -> list[dict[str, Any]]:
    """minisd beside each of the other systems, all of them in turn; seconds a picture."""
    results, first = {}, {}
    for system, run in runs.items():  # once, not counted
        results[system], first[system] = timed(run, device)
    found: dict[str, list[float]] = {system: [] for system in runs}
    for _ in range(times):
        for system, run in runs.items():
            found[system].append(timed(run, device)[1] / pictures)
    gc.collect()
    a, ours = results["minisd"].float(), found["minisd"]
    return [
        row(
            what,
            system,
            ours,
            found[system],
            ((a - b.float()).abs().max() / b.float().abs().max()).item(),
            first["minisd"] / pictures,
        )
        for system, b in list(results.items())[1:]
    ]


def timed(run: Callable, device) -> tuple[Any, float]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def row(
    what: str,
    beside: str,
    ours: list[float],
    theirs: list[float],
    apart: float,
    first: float = 0.0,
) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(ours, theirs)]
    return {
        "what": what,
        "beside": beside,
        "minisd": statistics.median(ours),
        "it": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "first": first / statistics.median(ours),
        "apart": apart,
    }


def told(row: dict[str, Any]) -> str:
    """A row as a line."""
    spread = f"{row['low']:.2f} to {row['high']:.2f}"
    first = f"{row['first']:5.1f}x" if row["first"] else ""
    line = f"{row['what']:33} {row['beside']:11} {seconds(row['minisd'])} {seconds(row['it'])} "
    line += f"{row['ratio']:6.2f}  {spread:13}{first:>6}  {row['apart']:.0e}"
    if row.get("tflop"):
        line += "  share {:.2f} and {:.2f}".format(*row["shares"])
    if row.get("peak"):
        line += "  peak {:,.0f} and {:,.0f} MB".format(*(n / 1e6 for n in row["peak"]))
        line += ", read {:,.0f} and {:,.0f} MB".format(*(n / 1e6 for n in row["read"]))
    return line


def seconds(value: float) -> str:
    return f"{value * 1000:6.0f} ms" if value < 10 else f"{value:7.1f} s"


def ceiling(device, dtype) -> dict[str, float]:
    """What the machine does of the two things that a UNet call is made of, and of copying."""

    def best(run: Callable) -> float:
        return min([timed(run, device)[1] for _ in range(6)][1:])

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


if __name__ == "__main__":
    main()
