"""minisd beside diffusers (and transformers): same weights, inputs, dtype and machine, in one run.

    pip install '.[test]'
    python -m bench.side_by_side [--model FILE] [--device cuda] [--dtype float32,bfloat16] [--quick]

Each row is timed in pairs, first one system, then the other. It shows

    minisd, other    the medians
    ratio, spread    the median of the pairs' ratios (above 1: minisd is faster), and their range
    first            minisd's first call over its later ones
    apart            the largest difference of the two results, over the largest value
    share            which part of the machine's own rate of matrix products both reach; that rate
                     is measured in the same run
    peak, read       of loads, which run in new processes: memory, and bytes read from the disk

Without FILE, it makes weights of SD 1.x's size: the speed does not depend on their values. With
`--quick`, it makes a small model, to check that everything runs.

Each system runs in a process of its own, as bench/systems.py says. `--others engine,openvino` also
measures minisd with `fast.use_openvino`, and OpenVINO alone (pip install '.[bench]').
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.load import measure_load
from bench.process import in_new_process
from bench.systems import SYSTEMS, Worker, table_of, workers_for
from minisd.checkpoint.seeded import save_seeded
from minisd.unet import SD1, Table, UNet

OTHERS = sorted(SYSTEMS.keys() - {"minisd", "diffusers", "cpp"})
UNITS = {"matrix product": "TFLOP/s", "3x3 convolution": "TFLOP/s", "copy": "GB/s"}


def main() -> None:
    args, rows = arguments(), []
    torch.set_num_threads(args.threads)
    facts = f"{machine(args.device)}, {args.threads} threads"
    print(f"torch {torch.__version__}, diffusers {version('diffusers')}, {facts}")
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "sd.safetensors", Path(folder) / "small.safetensors"
        save_seeded(small, tiny=True)
        if args.model or args.quick:
            path = Path(args.model or small)
        else:
            in_new_process(save_seeded, path)
        dtypes = {name: getattr(torch, name) for name in args.dtype.split(",")}
        # Loads come first: once a model here has the file mapped, it stays in the cache.
        load_rows = {name: [*loads(path, small, dtype, args)] for name, dtype in dtypes.items()}
        for name, dtype in dtypes.items():
            rates = machine_rates(torch.device(args.device), dtype)
            print(f"\n{name}: " + ", ".join(f"{k} {v:.2f} {UNITS[k]}" for k, v in rates.items()))
            columns = f"{'minisd':>9} {'other':>9} {'ratio':>6}  {'spread':13}{'first':>6}  apart"
            print(f"{'':33} {'beside':11} {columns}")
            for row in chain(load_rows[name], compare(path, dtype, args)):
                work = row.get("tflop", 0) / rates["matrix product"]
                row["shares"] = [work / row[key] for key in ("minisd", "other")]
                rows.append({"dtype": name, **row})
                print(line_of(row), flush=True)
            rows.append({"dtype": name, "rates": rates})
    if args.json:
        versions = {name: version(name) for name in ("torch", "diffusers")}
        result = {"machine": facts, **versions, "rows": rows}
        Path(args.json).write_text(json.dumps(result, indent=1))


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
    parser.add_argument("--others", default="", help=", ".join(OTHERS))
    parser.add_argument("--quick", action="store_true", help="everything, with a small model")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    args = parser.parse_args()
    args.others = args.others.split(",") if args.others else []
    if not set(args.others) <= set(OTHERS):
        parser.error(f"--others can be {', '.join(OTHERS)}")
    if args.quick:
        args.sizes, args.pairs, args.threads = "64", 2, 1
    return args


# ---- the rows ------------------------------------------------------------------------------------


def compare(path: Path, dtype: torch.dtype, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of everything but loading."""
    systems = ["minisd", "diffusers", *args.others]
    if dtype != torch.float32:
        systems = [system for system in systems if system != "onnxruntime"]  # it has no kernels
    settings = (path, dtype, args.device, args.threads)
    sizes, table = sorted(map(int, args.sizes.split(","))), table_of(path)
    for size in sizes:
        # New for each size: a convolution is packed for the size that it meets first.
        with workers_for(systems, *settings) as workers:
            if size == sizes[0]:
                readers = {system: workers[system] for system in ("minisd", "diffusers")}
                yield from time_pairs("text, two prompts", readers, args.pairs, 1, "read")
            for batch in map(int, args.batches.split(",") if size == sizes[0] else "1"):
                name = f"guided UNet call, {size}"
                if batch > 1:
                    name += f", each of {batch}"
                for row in time_pairs(name, workers, args.pairs, batch, "call", size, batch):
                    yield {**row, "tflop": guided_tflop(size, table)}
            yield from time_pairs(f"encode, {size}", workers, args.pairs, 1, "encode", size)
            yield from time_pairs(f"decode, {size}", workers, args.pairs, 1, "decode", size)


def loads(
    path: Path, small: Path, dtype: torch.dtype, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The rows of loading: with the file in the system's cache, and with it only on the disk."""
    for place in ("cache", "disk"):
        measured: dict[str, list[dict[str, float]]] = {"minisd": [], "diffusers": []}
        for _ in range(args.pairs):
            for system, results in measured.items():
                settings = (path, small, dtype, place, args.device, args.threads)
                results.append(in_new_process(measure_load, system, *settings))
        ours, theirs = measured.values()
        apart = abs(ours[0]["total"] / theirs[0]["total"] - 1)
        for task, name in {"load": "load", "touch": "load and touch"}.items():
            times = ([result[task] for result in results] for results in (ours, theirs))
            row = row_of(f"{name}, from {place}", "diffusers", *times, apart)
            for key in ("peak", "read"):
                row[key] = [
                    max(result[f"{task}_{key}"] for result in results) for results in (ours, theirs)
                ]
            yield row


def guided_tflop(size: int, table: Table = SD1) -> float:
    """The work of a guided call in full, for both prompts. SD 1.x at 512: 1.607, of which 0.252 are
    attention's own products."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x, context = torch.empty(2, 4, size // 8, size // 8), torch.empty(2, 77, table.c_context)
        UNet(table)(x, torch.empty(2), context)
    return counter.get_total_flops() / 1e12


# ---- timing --------------------------------------------------------------------------------------


def time_pairs(
    name: str,
    workers: Mapping[str, Worker],
    n_pairs: int,
    pictures: int,
    task: str,
    *numbers: int,
) -> list[dict[str, Any]]:
    """A row for minisd beside each other system, all of them timed in turn; seconds a picture."""
    results, first = {}, {}
    for system, worker in workers.items():  # the first call is not counted
        results[system], first[system] = worker.measure(task, *numbers)
    times: dict[str, list[float]] = {system: [] for system in workers}
    for _ in range(n_pairs):
        for system, worker in workers.items():
            times[system].append(worker.measure(task, *numbers)[1] / pictures)
    rows = []
    for system in list(workers)[1:]:
        a, b = results["minisd"], results[system]
        apart = ((a - b).abs().max() / b.abs().max()).item()
        seconds_first = first["minisd"] / pictures
        rows.append(row_of(name, system, times["minisd"], times[system], apart, seconds_first))
    return rows


def row_of(
    name: str,
    beside: str,
    ours: list[float],
    theirs: list[float],
    apart: float,
    first: float = 0.0,
) -> dict[str, Any]:
    """A row of the table. ours, theirs, first: seconds; apart: a share of the largest value."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "name": name,
        "beside": beside,
        "minisd": statistics.median(ours),
        "other": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "first": first / statistics.median(ours),
        "apart": apart,
    }


def line_of(row: dict[str, Any]) -> str:
    spread = f"{row['low']:.2f} to {row['high']:.2f}"
    first = f"{row['first']:5.1f}x" if row["first"] else ""
    line = f"{row['name']:33} {row['beside']:11} {seconds(row['minisd'])} {seconds(row['other'])} "
    line += f"{row['ratio']:6.2f}  {spread:13}{first:>6}  {row['apart']:.0e}"
    if row.get("tflop"):
        line += "  share {:.2f} and {:.2f}".format(*row["shares"])
    if row.get("peak"):
        line += "  peak {:,.0f} and {:,.0f} MB".format(*(n / 1e6 for n in row["peak"]))
        line += ", read {:,.0f} and {:,.0f} MB".format(*(n / 1e6 for n in row["read"]))
    return line


def seconds(value: float) -> str:
    return f"{value * 1000:6.0f} ms" if value < 10 else f"{value:7.1f} s"


def machine_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The machine's own rates of matrix products, convolutions and copying, in UNITS."""

    def fastest(run: Callable[[], Tensor]) -> float:
        times = []
        for _ in range(6):
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    with torch.inference_mode():
        n = 8192 if device.type == "cuda" else 2048
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        matrix = 2 * n**3 / fastest(lambda: torch.mm(a, b)) / 1e12
        x = torch.randn(2, 640, 32, 32, device=device).to(dtype)
        w = torch.randn(640, 640, 3, 3, device=device).to(dtype)
        conv = 2 * 2 * 640 * 640 * 9 * 32 * 32 / fastest(lambda: F.conv2d(x, w, padding=1)) / 1e12
        large = torch.empty(1 << 27, dtype=torch.uint8, device=device)
        copy = 2 * (1 << 27) / fastest(large.clone) / 1e9
    return {"matrix product": matrix, "3x3 convolution": conv, "copy": copy}


def machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().split("\n")
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "CPU"


if __name__ == "__main__":
    main()
