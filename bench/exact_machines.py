"""Exact mode on other machines: the pinned hashes, computed on processors that you do not have.

    python -m bench.exact_machines here               instruction sets, threads and batch sizes
    python -m bench.exact_machines x86                two older processors (package qemu-user)
    python -m bench.exact_machines arm                aarch64 (package qemu-user): 160 MB of wheels
    python -m bench.exact_machines python PATH ...    other Pythons, with other versions of torch
    python -m bench.exact_machines full               SD 1.x at 512 pixels: 4.3 GB of weights

Every line says how many of the pins of tests/golden/exact_pins.json a machine gives. An emulated
processor takes 10 to 30 times as long. The folder for ARM is build/exact-arm; delete it at will.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from minisd.checkpoint.seeded import save_seeded

ROOT = Path(__file__).parent.parent
PINS = ROOT / "tests" / "golden" / "exact_pins.json"
ARM = ROOT / "build" / "exact-arm"
INSTRUCTIONS = {
    "AVX-512": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"},
    "no AVX": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "DNNL_MAX_CPU_ISA": "SSE41",
    },
}
# Some of all pins, for the slow ones: noise, memory, a batch, a mask, other functions of torch.
SOME = ["sampler k_lms", "batch of 3", "inpainting", "sampler dpmpp_2m_sde", "guidance rescale"]
DEBIAN = """python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1
    libstdc++6 zlib1g libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libexpat1 libuuid1
    libncursesw6 libtinfo6 libreadline8 libgomp1 libcrypt1"""
# torch 2.10.0 for aarch64 is made for the CPU; later wheels want CUDA's libraries.
WHEELS = """torch==2.10.0 safetensors Pillow numpy tokenizers einops ftfy tqdm wcwidth
    typing-extensions filelock sympy mpmath networkx jinja2 MarkupSafe fsspec huggingface-hub
    packaging pyyaml requests"""


def compare(label: str, command: Sequence[str], names: Sequence[str], more: Mapping = {}) -> bool:
    """Compute the pins of these names (all without names) with a command, and print a line."""
    settings = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | dict(more)
    start = time.monotonic()
    done = subprocess.run(
        [*command, "-m", "tests.exact_pins", *names],
        capture_output=True, text=True, check=False, cwd=ROOT, env=settings,
    )  # fmt: skip
    seconds = time.monotonic() - start
    if done.returncode != 0:
        print(f"{label}: failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return False
    pins, hashes = json.loads(PINS.read_text())["small"], json.loads(done.stdout)
    differ = [name for name in hashes if hashes[name] != pins[name]]
    problem = f"; different: {differ}" if differ else ""
    counts = f"{len(hashes) - len(differ)} of {len(hashes)} hashes equal"
    print(f"{label}: {counts} ({seconds:.0f} s){problem}", flush=True)
    return not differ


def here() -> bool:
    results = []
    for label, settings in INSTRUCTIONS.items():
        for threads in ("1", "2", "3"):
            more = settings | {"OMP_NUM_THREADS": threads}
            names = [] if threads == "1" else SOME
            results.append(compare(f"{label}, {threads} threads", [sys.executable], names, more))
    return all(results)


def x86() -> bool:
    kinds = ("Haswell", "Nehalem")
    return all([compare(k, ["qemu-x86_64", "-cpu", k, sys.executable], SOME) for k in kinds])


def arm() -> bool:
    root, site = ARM / "root", ARM / "site"
    if not (site / "torch").is_dir():
        set_up_arm(root, site)
    libraries = f"{site}/torch/lib:{root}/usr/lib/aarch64-linux-gnu"
    variables = {"PYTHONPATH": f"{site}:{ROOT}", "PYTHONHOME": f"{root}/usr"}
    variables |= {"LD_LIBRARY_PATH": libraries, "OMP_NUM_THREADS": "1"}
    command = ["qemu-aarch64", "-L", f"{root}"]
    for name, text in variables.items():
        command += ["-E", f"{name}={text}"]
    return compare("aarch64, torch 2.10.0", [*command, f"{root}/usr/bin/python3.11"], SOME)


def set_up_arm(root: Path, site: Path) -> None:
    """Debian's Python 3.11 for arm64, and wheels for it, each unpacked into a folder."""
    lists, cache, packages = ARM / "lists", ARM / "cache", ARM / "packages"
    for folder in (lists / "partial", cache / "archives" / "partial", packages, root, site):
        folder.mkdir(parents=True, exist_ok=True)
    (ARM / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State::lists": f"{lists}",
        "Dir::State::status": f"{ARM / 'status'}",
        "Dir::Cache": f"{cache}",
        "Debug::NoLocking": "1",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={text}" for name, text in options.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *DEBIAN.split()], check=True, cwd=packages)
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    platforms = ("manylinux_2_28_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")
    words = [f"--platform={name}" for name in platforms]
    words += ["--python-version=3.11", "--implementation=cp", "--only-binary=:all:", "--no-deps"]
    words += ["--abi=cp311", "--abi=abi3", "--abi=none", "--target", f"{site}"]
    pip = [sys.executable, "-m", "pip", "install", "-q", *words]
    subprocess.run([*pip, *WHEELS.split()], check=True)


FULL = """
import hashlib, json, sys, time
import minisd
from minisd.exact_mode import exact
from tests.exact_pins import picture, hashes
sd = minisd.load(sys.argv[1])
start = time.monotonic()
with exact():
    result = minisd.img2img(
        sd, "fire", picture(512, 512), strength=1.0, steps=2, guidance=1, seed=1, sampler="k_euler"
    )
print(hashes(result)[0][:16], hashes(result)[1][:16], f"{time.monotonic() - start:.0f} s")
"""


def full() -> bool:
    """One run of 2 steps at full size, with two instruction sets and 1 and 2 threads."""
    path = ROOT / "build" / "sd1-seeded.safetensors"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        save_seeded(path)
    lines = []
    for label in ("AVX-512", "AVX2"):
        for threads in ("1", "2"):
            settings = os.environ | INSTRUCTIONS[label] | {"OMP_NUM_THREADS": threads}
            done = subprocess.run(
                [sys.executable, "-c", FULL, path],
                capture_output=True, text=True, check=True, cwd=ROOT, env=settings,
            )  # fmt: skip
            lines.append(done.stdout.split()[:2])
            print(f"{label}, {threads} threads: {done.stdout.strip()}", flush=True)
    return all(line == lines[0] for line in lines)


def main(words: list[str]) -> int:
    match words:
        case ["here"]:
            return int(not here())
        case ["x86"]:
            return int(not x86())
        case ["arm"]:
            return int(not arm())
        case ["full"]:
            return int(not full())
        case ["python", *paths] if paths:
            return int(not all([compare(path, [path], []) for path in paths]))
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
