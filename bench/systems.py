"""The systems that are measured, each in a process of its own, with the same weights and inputs.

    minisd         as the command line has it: packed, in strips, with memory that is kept
    engine         minisd with fast.use_openvino; needs the package openvino
    plain          minisd without minisd.fast
    diffusers      with transformers' text encoder
    openvino       minisd's networks, each compiled for one shape
    onnxruntime    the same, in float32 only
    cpp            stable-diffusion.cpp, whole runs only; needs stable-diffusion-cpp-python. It has
                   no bfloat16 arithmetic: in its place, its weights are float16

One process for each, because memory that one keeps (fast.keep_memory) would speed up the others.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import minisd
from bench import compilers
from bench.models import diffusers_img2img, load_diffusers
from minisd import fast
from minisd.checkpoint import PREFIXES
from minisd.checkpoint.architecture import unet_table
from minisd.guidance import Guided
from minisd.tokenizer import Tokenizer
from minisd.unet import Table
from minisd.vae import SCALE

PROMPTS = ["a fire, burning", ""]
GUIDANCE = 7.5


@dataclass
class System:
    """Functions of tensors on a device, and a whole run: (picture, steps) -> picture."""

    device: torch.device
    table: Table
    text: Callable[[Tensor], Tensor] | None = None
    unet: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    encoder: Callable[[Tensor], Tensor] | None = None
    decoder: Callable[[Tensor], Tensor] | None = None
    img2img: Callable[[Image.Image, int], Image.Image] | None = None


# ---- tasks: their inputs depend on the numbers alone ---------------------------------------------


def read(system: System) -> Callable[[], Tensor]:
    tokens = Tokenizer()(PROMPTS).to(system.device)
    return lambda: system.text(tokens)


def call(system: System, size: int, batch: int) -> Callable[[], Tensor]:
    """A guided call at sigma 3: two latents for each picture."""
    rng = torch.Generator().manual_seed(1)
    states = torch.randn(2, 77, system.table.c_context, generator=rng).to(system.device)
    x, _ = inputs(system, size, batch)
    return partial(Guided(system.unet, states[:1], states[1:], GUIDANCE), x, 3.0)


def encode(system: System, size: int) -> Callable[[], Tensor]:
    return partial(system.encoder, inputs(system, size)[1])


def decode(system: System, size: int) -> Callable[[], Tensor]:
    return partial(system.decoder, inputs(system, size)[0])


def draw(system: System, size: int, steps: int) -> Callable[[], Tensor]:
    """img2img at strength 1, from a picture to a picture: (size, size, 3) in 0..255."""
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (size, size, 3), np.uint8))
    return lambda: torch.from_numpy(np.array(system.img2img(picture, steps)))


def inputs(system: System, size: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Latents (batch, 4, size/8, size/8) and a picture (1, 3, size, size) in -1..1."""
    rng = torch.Generator().manual_seed(size)
    image = torch.rand(1, 3, size, size, generator=rng) * 2 - 1
    x = torch.randn(batch, 4, size // 8, size // 8, generator=rng)
    return x.to(system.device), image.to(system.device)


TASKS = {"read": read, "call": call, "encode": encode, "decode": decode, "draw": draw}


# ---- the systems ---------------------------------------------------------------------------------


def minisd_system(path: Path, dtype: torch.dtype, device: torch.device, name: str) -> System:
    sd = minisd.load(path, device=device, dtype=dtype)
    if name == "engine":
        fast.use_openvino(sd, folder=path.parent / "converted")
    elif name == "minisd":
        fast.work_in_strips(sd)
        if device.type == "cpu":
            fast.pack(sd)
            fast.keep_memory()
    # DDIM, because diffusers visits the same timesteps with it.
    settings = {"strength": 1.0, "guidance": GUIDANCE, "sampler": "ddim", "seed": 0}

    def img2img(picture: Image.Image, steps: int) -> Image.Image:
        return minisd.img2img(sd, PROMPTS[0], picture, steps=steps, **settings).image

    networks = (sd.text_encoder, sd.unet, sd.vae.moments, sd.vae.decode)
    return System(device, table_of(path), *networks, img2img)


def diffusers_system(path: Path, dtype: torch.dtype, device: torch.device, _: str) -> System:
    text_encoder, unet, vae = load_diffusers(path, device, dtype)
    # As minisd does, encode to the mean.
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
    run, tokens = diffusers_img2img(unet, vae, dtype), Tokenizer()(PROMPTS).to(device)

    def read_states(tokens: Tensor) -> Tensor:
        return text_encoder(tokens).last_hidden_state

    return System(
        device,
        table_of(path),
        read_states,
        lambda x, t, context: unet(x.to(dtype), t, context.to(dtype)).sample.float(),
        lambda image: vae.encode(image.to(dtype)).latent_dist.parameters.float(),
        lambda x: vae.decode((x / SCALE).to(dtype)).sample.float(),
        lambda picture, steps: run(picture, read_states(tokens), steps),
    )


def compiled_system(path: Path, dtype: torch.dtype, device: torch.device, name: str) -> System:
    sd = minisd.load(path)
    methods = (compilers.Method(sd.vae, method) for method in ("moments", "decode"))
    compiled = partial(compilers.compiled, name, dtype=dtype, threads=torch.get_num_threads())
    return System(device, table_of(path), sd.text_encoder, *map(compiled, (sd.unet, *methods)))


def cpp_system(path: Path, dtype: torch.dtype, device: torch.device, _: str) -> System:
    package = import_module("stable_diffusion_cpp")
    kind = {torch.float32: "f32", torch.bfloat16: "f16"}[dtype]
    threads = torch.get_num_threads()
    sd = package.StableDiffusion(str(path), wtype=kind, n_threads=threads, verbose=False)
    settings = {"strength": 1.0, "cfg_scale": GUIDANCE, "sample_method": "euler", "seed": 0}

    def img2img(picture: Image.Image, steps: int) -> Image.Image:
        width, height = picture.size
        size = {"width": width, "height": height, "sample_steps": steps}
        return sd.generate_image(PROMPTS[0], init_image=picture, **size, **settings)[0]

    return System(device, table_of(path), img2img=img2img)


SYSTEMS = {
    "minisd": minisd_system,
    "plain": minisd_system,
    "engine": minisd_system,
    "diffusers": diffusers_system,
    "openvino": compiled_system,
    "onnxruntime": compiled_system,
    "cpp": cpp_system,
}


def table_of(path: Path) -> Table:
    prefix = PREFIXES["unet"]
    with safe_open(path, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
        shapes = {key.removeprefix(prefix): tuple(file.get_slice(key).get_shape()) for key in keys}
    return unet_table(shapes)


# ---- the processes -------------------------------------------------------------------------------


class Worker:
    """A process that has loaded one system. It measures one task after the other."""

    def __init__(self, name: str, path: Path, dtype: torch.dtype, device: str, threads: int):
        context = get_context("forkserver")
        context.set_forkserver_preload(["bench.models"])
        self.pool = ProcessPoolExecutor(1, context, start, (name, path, dtype, device, threads))

    def measure(self, task: str, *numbers: int) -> tuple[Tensor, float]:
        """The task's result, and the seconds that it took."""
        result, seconds = self.pool.submit(perform, task, *numbers).result()
        return torch.from_numpy(result), seconds


@contextmanager
def workers_for(systems: Iterable[str], *settings: Any) -> Iterator[dict[str, Worker]]:
    """A worker for each of these systems, by name. Their processes end with the block."""
    workers = {system: Worker(system, *settings) for system in systems}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.pool.shutdown()


system: System  # of a worker's process


def start(name: str, path: Path, dtype: torch.dtype, device: str, threads: int) -> None:
    global system  # noqa: PLW0603 - a process has one
    torch.set_num_threads(threads)
    system = SYSTEMS[name](path, dtype, torch.device(device), name)


@torch.inference_mode()
def perform(task: str, *numbers: int) -> tuple[np.ndarray, float]:
    run = TASKS[task](system, *numbers)
    wait()
    before = time.perf_counter()
    result = run()
    wait()
    seconds = time.perf_counter() - before
    return result.float().cpu().numpy(), seconds


def wait() -> None:
    if system.device.type == "cuda":
        torch.cuda.synchronize()
