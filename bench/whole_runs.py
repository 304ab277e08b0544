"""Whole runs of img2img beside others: same weights, size, steps, dtype and machine, in turn.

    pip install '.[test]'
    python -m bench.whole_runs RUNS.json [--systems minisd,engine,diffusers,cpp] [--quick]

A run goes from a picture to a picture at strength 1 with guidance 7.5: an encoding, twice as many
evaluations of the UNet as steps, a decoding. The systems are those of bench/systems.py. Minisd and
diffusers run DDIM, because both visit the same timesteps with it, and their pictures are compared.
Cpp runs k_euler.

Before the first round, each system does a run of one step, which is not counted: it compiles and
packs. Each run's seconds are written to RUNS.json at once. The same command goes on from there, so
the rounds can be spread over the quiet hours of a machine.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from bench.process import in_new_process
from bench.side_by_side import machine
from bench.systems import SYSTEMS, workers_for
from minisd.checkpoint.seeded import save_seeded


def main() -> None:
    args = arguments()
    path = Path(args.file)
    measured = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(args.model or Path(folder) / "sd.safetensors")
        if args.quick:
            save_seeded(weights, tiny=True)
        elif not args.model:
            in_new_process(save_seeded, weights)
        for dtype in args.dtype.split(","):
            key = f"{dtype}, {args.size} pixels, {args.steps} steps, {machine(args.device)}"
            key += f", {args.threads} threads"
            earlier = measured.get(key, {})
            n_rounds = min(len(earlier.get(system, [])) for system in args.systems)  # whole ones
            times = {system: earlier.get(system, [])[:n_rounds] for system in args.systems}
            measured[key] = times
            if n_rounds < args.rounds:
                settings = (weights, getattr(torch, dtype), args.device, args.threads)
                with workers_for(args.systems, *settings) as workers:
                    for worker in workers.values():
                        worker.measure("draw", args.size, 1)  # not counted
                    pictures = {}
                    for _ in range(n_rounds, args.rounds):
                        for system, worker in workers.items():
                            result = worker.measure("draw", args.size, args.steps)
                            pictures[system], seconds = result
                            times[system].append(seconds)
                            path.write_text(json.dumps(measured, indent=1))
                            print(f"{key}: {system} {seconds:.1f} s", flush=True)
                    compare(pictures)
            print("\n".join(table(key, times)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", metavar="RUNS.json", help="where the seconds are kept")
    parser.add_argument("--systems", default="minisd,engine,diffusers", help="with commas")
    parser.add_argument("--model", help="an SD 1.x checkpoint, .safetensors")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16,float32", help="one or more, with commas")
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="in all, those in the file included")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="a small model, to see that it runs")
    args = parser.parse_args()
    args.systems = args.systems.split(",")
    if not set(args.systems) <= set(SYSTEMS):
        parser.error(f"--systems can be {', '.join(SYSTEMS)}")
    if args.quick:
        args.size, args.steps, args.rounds, args.threads = 64, 2, 2, 1
    return args


def compare(pictures: dict[str, Tensor]) -> None:
    """In bfloat16 diffusers draws other noise, so there its picture differs."""
    first, *others = [system for system in pictures if system != "cpp"]
    for system in others:
        apart = (pictures[first] - pictures[system]).abs().max()
        print(f"{first} and {system}: at most {apart:.0f} of 255 apart")


def table(key: str, times: dict[str, list[float]]) -> list[str]:
    """Medians, and each system's time divided by the first one's: median and range of rounds."""
    (_, ours), *_ = times.items()
    lines = [f"\n{key}", f"{'':12}{'median':>8}  {'time / first':13} of rounds"]
    for system, theirs in times.items():
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        lines.append(
            f"{system:12}{statistics.median(theirs):7.1f} s {statistics.median(ratios):8.2f}"
            f"      {min(ratios):.2f} to {max(ratios):.2f}"
        )
    return lines


if __name__ == "__main__":
    main()
