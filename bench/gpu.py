"""Checks and measurements on a GPU, in a few minutes.

    pip install '.[test]'
    python -m bench.gpu --out FOLDER [--device cuda] [--parts noise,golden,...] [--limit SECONDS]

    noise     normal numbers of the GPU's own generator, as torch.randn draws them: a golden file
    golden    golden values of tests/golden at both sizes: float32 without and with TF32, 16 bits
    commands  every command on the weights in the box, beside the same on the CPU
    exact     exact mode: the pinned hashes of tests/golden/exact_pins.json
    sync      where a run waits for the GPU
    batch     pictures a second and memory against batch size
    speed     UNet calls and whole runs beside diffusers: eager, CUDA graph, torch.compile
    first     from the command to the first picture

Each part prints its results at once, and writes them into FOLDER. `--device cpu --quick` runs all
parts with a small model, to check that they work.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copyfile, disk_usage
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import minisd
from bench.gpu_checks import (
    NOISE_SEEDS,
    ROOT,
    SKETCH,
    WaitingOperations,
    command_lines,
    golden_errors,
    golden_values,
    noise_places,
    noise_shapes,
    place,
    png_difference,
)
from bench.gpu_workers import BATCHES, STAGES, STEPS, Workers
from minisd.checkpoint.seeded import TINY_FACTS, sd1_shapes, seeded_tensor, tiny_shapes
from minisd.cli.main import COMMANDS
from minisd.cli.main import main as minisd_main
from minisd.observe.finite import stop_at_nan
from minisd.observe.ledger import Ledger
from minisd.observe.watch import together
from minisd.samplers import SAMPLERS

PARTS = ("noise", "golden", "commands", "exact", "sync", "batch", "speed", "first")


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    bench = Bench(args)
    bench.note("machine", **bench.machine())
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        bench.folder = Path(folder)
        try:
            for name in args.parts:
                if bench.left() < 5:
                    bench.note("stopped", before=name)
                    break
                start = time.perf_counter()
                try:
                    if name != "noise":
                        bench.prepare()
                    getattr(bench, name)()
                except Exception as error:  # the other parts still run
                    traceback.print_exc()
                    bench.note(f"{name}.failed", error=f"{type(error).__name__}: {error}"[:500])
                bench.note(f"{name}.seconds", seconds=round(time.perf_counter() - start, 1))
        finally:
            bench.stop()


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, in this order")
    parser.add_argument("--limit", type=float, default=480, help="seconds for everything (480)")
    text = "of the part speed; the last two take a minute to compile"
    parser.add_argument("--stages", default=",".join(STAGES), help=text)
    parser.add_argument("--quick", action="store_true", help="a small model in place of SD 1.x's")
    text = "for the part commands: do not run them on the CPU as well"
    parser.add_argument("--no-reference", action="store_true", help=text)
    args = parser.parse_args(argv)
    args.parts = args.parts.split(",")
    if not set(args.parts) <= set(PARTS):
        parser.error(f"--parts can be {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def fast_folder() -> str | None:
    """Where large files are written: in memory, if the system has a folder with room there."""
    folder = "/dev/shm"
    return folder if Path(folder).is_dir() and disk_usage(folder).free > 12e9 else None


class Bench:
    """The device, the results, and what the parts share."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, args.out
        self.device = torch.device(args.device)
        self.is_cuda = self.device.type == "cuda"
        self.start = time.perf_counter()
        self.results: list[dict[str, Any]] = []
        self.folder = Path()
        self.workers: Workers | None = None
        self.on_cpu: subprocess.Popen | None = None  # the commands
        self.pins: subprocess.Popen | None = None
        self.prepared = False
        self.lock = threading.Lock()  # the workers' answers are noted by threads
        self.tf32(False)

    def left(self) -> float:
        """Seconds until the limit."""
        return self.args.limit - (time.perf_counter() - self.start)

    def note(self, name: str, /, **facts: Any) -> None:
        """Print a result, and write all results so far."""
        seconds = round(time.perf_counter() - self.start, 1)
        values = ", ".join(f"{key} {short(value)}" for key, value in facts.items())
        with self.lock:
            print(f"{seconds:6.1f} {name:28} {values}", flush=True)
            self.results.append({"at": seconds, "name": name, **facts})
            text = json.dumps(self.results, indent=1, default=str)
            (self.out / "gpu.json").write_text(text)

    def machine(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"torch": torch.__version__, "cores": os.cpu_count()}
        if self.is_cuda:
            properties = torch.cuda.get_device_properties(self.device)
            facts |= {"card": properties.name, "multiprocessors": properties.multi_processor_count}
            facts["threads"] = getattr(properties, "max_threads_per_multi_processor", None)
            facts["GB"] = round(properties.total_memory / 1e9, 1)
            facts["cudnn"] = torch.backends.cudnn.version()
        return facts

    def tf32(self, on: bool) -> None:
        """PyTorch's default is TF32 in convolutions, and float32 in matrix products.

        The command line switches it off.
        """
        torch.backends.cudnn.allow_tf32 = on
        torch.backends.cuda.matmul.allow_tf32 = False

    def finish(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def peak(self) -> float | None:
        """GB of the GPU's memory, at most, since the last call."""
        if not self.is_cuda:
            return None
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return round(peak, 2)

    def prepare(self) -> None:
        """Once: write weights, and start the processes whose results later parts collect."""
        if self.prepared:
            return
        self.prepared = True
        parts = set(self.args.parts)
        if parts & {"golden", "sync", "batch", "speed", "first"}:
            self.write_weights()
        if "speed" in parts:
            stages = [s for s in self.args.stages.split(",") if self.is_cuda or s != "graph"]
            batches = BATCHES[:1] if self.args.quick else BATCHES
            words, log = [str(self.large), self.args.device], self.out / "workers.txt"
            self.workers = Workers(stages, batches, words, log, self.note, self.left)
        if "commands" in parts and not self.args.no_reference:
            self.start_commands_on_cpu()
        if "exact" in parts:
            self.start_exact()

    def write_weights(self) -> None:
        """A checkpoint of name-seeded weights, tiny.safetensors or sd1.safetensors, and tiny."""
        for name, shapes in (("tiny", tiny_shapes()), ("sd1", sd1_shapes())):
            if name == "sd1" and self.args.quick:
                continue
            start = time.perf_counter()
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy draws without the lock
                tensors = dict(zip(shapes, pool.map(seeded_tensor, shapes, shapes.values())))
            drawn = time.perf_counter() - start
            path = self.folder / f"{name}.new"
            facts = TINY_FACTS if name == "tiny" else {}
            save_file(tensors, path, metadata={"minisd": json.dumps(facts)})
            path.rename(self.folder / f"{name}.safetensors")
            total = time.perf_counter() - start
            self.note(f"weights.{name}", draw=round(drawn, 1), write=round(total - drawn, 1))

    @property
    def large(self) -> Path:
        return self.folder / ("tiny.safetensors" if self.args.quick else "sd1.safetensors")

    def load(self, path: Path | None = None, dtype: torch.dtype | None = None):
        """The large model in 16 bits on a GPU, in float32 on a CPU."""
        dtype = dtype or (torch.float16 if self.is_cuda else torch.float32)
        return minisd.load(path or self.large, device=self.device, dtype=dtype)

    # ---- noise -----------------------------------------------------------------------------------

    def noise(self) -> None:
        properties = torch.cuda.get_device_properties(self.device) if self.is_cuda else None
        threads = 270_336  # an H100's
        if properties is not None:
            per_core = getattr(properties, "max_threads_per_multi_processor", 2048)
            threads = properties.multi_processor_count * (per_core // 256) * 256
        tensors, hashes = {}, {}
        for shape in noise_shapes(threads):
            n = int(np.prod(shape))
            places = noise_places(n, threads)
            name = "x".join(map(str, shape))
            if len(places) < n:
                tensors[f"{name}.places"] = places
            for seed in NOISE_SEEDS:
                generator = torch.Generator(self.device).manual_seed(seed)
                for draw in (1, 2):
                    drawn = torch.randn(shape, generator=generator, device=self.device)
                    values = drawn.cpu().flatten()
                    tensors[f"{name}.{seed}.{draw}"] = values[places].clone()
                    digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()
                    hashes[f"{name}.{seed}.{draw}"] = digest
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            generator = torch.Generator(self.device).manual_seed(42)
            drawn = torch.randn(1, 4, 64, 64, generator=generator, device=self.device, dtype=dtype)
            name = f"1x4x64x64.42.1.{str(dtype).removeprefix('torch.')}"
            tensors[name] = drawn.cpu().flatten()[:1024].clone()
        torch.manual_seed(42)  # the card's default generator
        is_same = torch.equal(
            torch.randn(1, 4, 64, 64, device=self.device).cpu().flatten(),
            tensors["1x4x64x64.42.1"],
        )
        facts = {"machine": self.machine(), "threads_in_a_pass": threads, "sha256": hashes}
        metadata = {name: json.dumps(value) for name, value in facts.items()}
        path = self.out / "cuda_noise.safetensors"
        save_file(tensors, path, metadata=metadata)
        size = path.stat().st_size / 1e6
        first = tensors["1x4x64x64.42.1"][:3].tolist()
        self.note("noise", draws=len(hashes), MB=size, first=first, manual_seed_is_same=is_same)

    # ---- golden ----------------------------------------------------------------------------------

    def golden(self) -> None:
        for name in ("tiny",) if self.args.quick else ("tiny", "sd1"):
            values, facts = golden_values(name)
            path = self.folder / f"{name}.safetensors"
            sd = self.load(path, torch.float32)
            for tf32 in (False, True) if self.is_cuda else (False,):
                self.tf32(tf32)
                errors = golden_errors(sd, values, facts)
                title = f"golden.{name}.{'tf32' if tf32 else 'float32'}"
                self.note(title, **errors, GB=self.peak())
            self.tf32(False)
            del sd
            # Most CPUs have no instructions for float16, and take minutes.
            for dtype in (torch.float16, torch.bfloat16) if self.is_cuda else (torch.bfloat16,):
                sd = self.load(path, dtype)
                errors = golden_errors(sd, values, facts)
                title = f"golden.{name}.{str(dtype).removeprefix('torch.')}"
                self.note(title, **errors, GB=self.peak())
                del sd

    # ---- commands --------------------------------------------------------------------------------

    def start_commands_on_cpu(self) -> None:
        """The same commands on the CPU, meanwhile, in a process of its own."""
        words = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--parts", "commands"]
        words.append("--no-reference")
        folder = self.folder / "cpu"
        with (self.folder / "commands-on-cpu.txt").open("w") as log:
            self.on_cpu = subprocess.Popen(
                [*words, "--out", str(folder)], cwd=ROOT, stdout=log, stderr=log
            )

    def commands(self) -> None:
        folder = self.out if self.args.no_reference else self.folder / "here"
        folder.mkdir(exist_ok=True)
        lines = command_lines(folder, self.device)
        for name, words in lines.items():
            self.run_command(name, words)
        untried = set(COMMANDS) - {name.partition("-")[0] for name in lines}
        self.note("commands.not_tried", names=sorted(untried))
        if self.on_cpu is None:
            return
        for name in ("000001.2.png", "000011.2.strip.png"):  # to look at
            if (folder / "pictures" / name).exists():
                copyfile(folder / "pictures" / name, self.out / name)
        try:
            self.on_cpu.wait(max(5, self.left() - 40))
        except subprocess.TimeoutExpired:
            self.note("commands.on_cpu", result="not finished")
        differences = []
        for path in sorted(folder.rglob("*.png")):
            name = path.relative_to(folder)
            on_cpu = self.folder / "cpu" / name
            if on_cpu.exists():
                differences.append((*png_difference(path, on_cpu), str(name)))
        for worst, share, name in sorted(differences, reverse=True):
            self.note(f"commands.{name}", levels=worst, share_off_by_2=share)

    def run_command(self, name: str, words: list[str]) -> None:
        text, start = io.StringIO(), time.perf_counter()
        try:
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                status: int | str = minisd_main(words)
        except BaseException as error:
            status = f"{type(error).__name__}: {error}"
            text.write(traceback.format_exc())
        seconds = round(time.perf_counter() - start, 1)
        last = (text.getvalue().strip().splitlines() or [""])[-1]
        self.note(f"commands.{name}", status=status, seconds=seconds, last=last[:100])
        with (self.out / "commands.txt").open("a") as log:
            log.write(f"$ minisd {' '.join(words)}\n{text.getvalue()}\n")

    # ---- exact -----------------------------------------------------------------------------------

    def start_exact(self) -> None:
        """The pinned hashes of exact mode, meanwhile, in a process of its own."""
        words = [sys.executable, "-m", "tests.exact_pins", "check", self.args.device]
        self.pins = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def exact(self) -> None:
        assert self.pins is not None
        text, _ = self.pins.communicate(timeout=max(5, self.left() - 40))
        lines = (text.strip() or "no result").splitlines()
        self.note("exact", status=self.pins.returncode, lines=lines)

    # ---- sync ------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Where the CPU waits for the GPU, in each step: from runs of 4 and of 8 steps."""
        sd = minisd.load(device=self.device)
        picture = Image.open(SKETCH).convert("RGB").resize((64, 64))
        total: Counter[str] = Counter()
        for sampler in SAMPLERS:
            counts = []
            for steps in (4, 8):
                settings = {"strength": 1.0, "steps": steps, "seed": 1, "sampler": sampler}
                with self.waits() as places:
                    minisd.img2img(sd, "fire", picture, **settings)
                counts.append(places)
            in_loop = {k: (n - counts[0][k]) / 4 for k, n in counts[1].items() if n > counts[0][k]}
            if in_loop:
                self.note(f"sync.{sampler}", **in_loop)
            total.update(counts[0])
        self.note("sync.all_places", **total)
        counts = []
        for steps in (4, 8):
            settings = {"strength": 1.0, "steps": steps, "seed": 1}
            with self.waits() as places, Ledger(sd) as ledger:
                observe = together(stop_at_nan(sd), ledger)
                minisd.img2img(sd, "fire", picture, observe=observe, **settings)
            counts.append(places)
        in_loop = {k: (n - counts[0][k]) / 4 for k, n in counts[1].items() if n > counts[0][k]}
        self.note("sync.command_line", **in_loop)
        self.cost_of_observers()

    def cost_of_observers(self) -> None:
        sd = self.load()
        latent = torch.zeros(1, 4, sd.native_size // 8, sd.native_size // 8)
        settings = {"strength": 1.0, "steps": 20, "seed": 1, "sampler": "ddim"}
        states = sd.text_states("fire")
        seconds: dict[str, list[float]] = {"without": [], "with observers": []}
        for _ in range(4):
            for name, times in seconds.items():
                with Ledger(sd) as ledger:
                    watch = together(stop_at_nan(sd), ledger)
                    observe = watch if name == "with observers" else None
                    self.finish()
                    start = time.perf_counter()
                    minisd.img2img(sd, states, latent, observe=observe, **settings)
                    self.finish()
                    times.append(time.perf_counter() - start)
        medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
        self.note("sync.run_of_20_steps", **medians)

    @contextlib.contextmanager
    def waits(self) -> Iterator[Counter[str]]:
        """Counts, by line of code, the operations that wait for the GPU.

        On a CPU: the operations that would wait. Copies between devices are not seen there.
        """
        places: Counter[str] = Counter()
        if not self.is_cuda:
            with WaitingOperations(places):
                yield places
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield places
            finally:
                torch.cuda.set_sync_debug_mode("default")
        for warning in caught:
            if "synchroniz" in str(warning.message):
                places[place(warning.filename, warning.lineno)] += 1

    # ---- batch -----------------------------------------------------------------------------------

    def batch(self) -> None:
        sd = self.load()
        size = sd.native_size
        picture = Image.open(SKETCH).convert("RGB").resize((size, size))
        for batch in (1, 2) if self.args.quick else (1, 2, 4, 8, 16, 32):
            if self.left() < 30:
                break
            settings = {"strength": 1.0, "steps": STEPS, "sampler": "ddim"}
            seeds = list(range(batch))
            self.peak()
            times = []
            for _ in range(2):
                self.finish()
                start = time.perf_counter()
                minisd.img2img(sd, "a fire", picture, seed=seeds, **settings)
                self.finish()
                times.append(time.perf_counter() - start)
            rate = batch / times[-1]
            self.note(f"batch.{batch}", first=times[0], later=times[1], a_second=rate,
                      GB=self.peak())  # fmt: skip

    # ---- speed -----------------------------------------------------------------------------------

    def speed(self) -> None:
        assert self.workers is not None
        self.workers.measure()

    # ---- first -----------------------------------------------------------------------------------

    def first(self) -> None:
        """A new process, from the command to the end of the program, with the picture written."""
        for name, model in (("box", []), ("large", ["--model", str(self.large)])):
            if self.left() < 15:
                return
            words = ["img2img", "fire", "-I", str(SKETCH), "--fit", "-f", "0.8", "-s", "20"]
            words += ["-S", "1", "--device", self.args.device, "-o", str(self.folder / "first")]
            if self.is_cuda and model:
                words += ["--dtype", "float16"]
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "minisd", *words, *model],
                check=False,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=max(5, self.left()),
            )
            self.note(f"first.{name}", seconds=time.perf_counter() - start, status=done.returncode,
                      error=done.stderr[-300:] if done.returncode else "")  # fmt: skip

    def stop(self) -> None:
        """End the processes that were started."""
        if self.workers is not None:
            self.workers.stop()
        for process in (self.on_cpu, self.pins):
            if process is not None:
                process.kill()


def short(value: Any) -> Any:
    """A value as it is printed."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return [short(v) for v in value]
    return value


if __name__ == "__main__":
    main()
