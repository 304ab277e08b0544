"""A UNet in a process of its own, which bench/gpu.py times in turn with others.

    python -m bench.gpu_speed minisd|diffusers BATCH FILE DEVICE

It waits for the checkpoint FILE, and loads it in float16 (on a CPU: float32). Then it reads
requests from standard input, and answers each with a line of JSON:

    prepare STAGE    make that stage ready; for some of them, PyTorch compiles for a minute
    time STAGE       seconds of a guided call of BATCH pictures, five measurements
    run STAGE        seconds of img2img with DDIM, 20 steps, from a picture to a picture
    kept STAGE       whether eps of earlier calls stay as they are, which k_lms relies on
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import minisd
from bench.gpu_workers import STAGES, STEPS
from bench.models import diffusers_img2img, load_diffusers
from minisd import fast
from minisd.guidance import Guided


class Speed:
    """The models of one system, and the stages that are ready."""

    def __init__(self, system: str, batch: int, path: Path, device: torch.device):
        self.system, self.batch, self.device = system, batch, device
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.sd = minisd.load(path, device=device, dtype=self.dtype)
        if system == "minisd":
            unet: nn.Module = self.sd.unet
        else:
            _text_encoder, unet, self.vae = load_diffusers(path, device, self.dtype)
        last = copy.deepcopy(unet).to(memory_format=torch.channels_last)
        self.networks = {"contiguous": unet, "channels last": last}
        self.compiled: dict[str, Callable | None] = {"eager": None, "channels last": None}

        size = self.sd.native_size
        rng = torch.Generator().manual_seed(0)
        side = size // self.sd.vae.factor
        self.x = torch.randn(batch, 4, side, side, generator=rng).to(device)
        self.states = self.sd.text_encoder(self.sd.tokenizer(["a fire, burning", ""]))
        pixels = np.random.RandomState(0).randint(0, 256, (size, size, 3), np.uint8)
        self.picture = Image.fromarray(pixels)

    def answer(self, word: str, stage: str) -> dict[str, Any]:
        layout, mode = STAGES[stage]
        if word == "prepare" and stage not in self.compiled:
            self.compiled[stage] = self.make(layout, str(mode))
        network = self.networks[layout]
        set_forward(network, self.compiled[stage])
        predict_eps = Guided(self.callable(network), self.states[:1], self.states[1:], 7.5)
        call = lambda: predict_eps(self.x, 3.0)  # noqa: E731
        if word == "prepare":
            first = self.seconds(call)
            eps = call().clone()
            times = [self.seconds(call, 5) for _ in range(3)]
            numbers = eps.flatten()[:4096].tolist()
            return {"first": first, "seconds_while_others_ran": times, "eps": numbers}
        if word == "time":
            repeats = 1 if self.device.type == "cpu" else 10
            return {"seconds": [self.seconds(call, repeats) for _ in range(5)]}
        if word == "run":
            run = self.whole_run(layout)
            run()
            return {"seconds": [self.seconds(run) for _ in range(3)]}
        return {"apart": self.change_of_kept_eps(network)}

    def make(self, layout: str, mode: str) -> Callable:
        network = self.networks[layout]
        set_forward(network, None)
        if mode == "graph":
            return self.graph(network)
        # On a CPU code generation takes many minutes, and there are no CUDA graphs.
        on_gpu = self.device.type == "cuda"
        options = {"mode": mode} if on_gpu else {"backend": "aot_eager"}
        if self.system == "minisd":
            fast.compile(replace(self.sd, unet=network), **options)
            return network.forward
        return torch.compile(network.forward, dynamic=False, **options)

    def graph(self, network: nn.Module) -> Callable:
        """A CUDA graph of one guided call, without compilation."""
        inputs = [self.x.repeat(2, 1, 1, 1), torch.full((2 * self.batch,), 500.0).to(self.x)]
        inputs.append(self.states.repeat_interleave(self.batch, dim=0))
        dtypes = [torch.float32] * 3 if self.system == "minisd" else [self.dtype, None, self.dtype]
        inputs = [y if dtype is None else y.to(dtype) for y, dtype in zip(inputs, dtypes)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                network(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = network(*inputs)

        def replay(*arguments: Tensor) -> Tensor:
            for kept, new in zip(inputs, arguments):
                kept.copy_(new)
            graph.replay()
            return output

        return replay

    def callable(self, network: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        if self.system == "minisd":
            return network
        dtype = self.dtype
        return lambda x, t, context: network(x.to(dtype), t, context.to(dtype)).sample.float()

    def whole_run(self, layout: str) -> Callable[[], Any]:
        network, states = self.networks[layout], self.states
        if self.system == "diffusers":
            draw = diffusers_img2img(network, self.vae, self.dtype)
            return lambda: draw(self.picture, states, STEPS)
        sd = replace(self.sd, unet=network)
        settings = {"steps": STEPS, "strength": 1.0, "sampler": "ddim", "seed": 0}
        negative = {"negative_prompt": states[1:]}
        return lambda: minisd.img2img(sd, states[:1], self.picture, **negative, **settings)

    def change_of_kept_eps(self, network: nn.Module) -> float:
        """At guidance 1, eps is the network's own output: how far a later call changes it."""
        x, states = self.x.repeat(2, 1, 1, 1), self.states.repeat_interleave(self.batch, dim=0)
        predict_eps = Guided(self.callable(network), states, states, 1)
        first = predict_eps(x, 3.0)
        before = first.clone()
        predict_eps(x * 0.5, 1.0)
        return (first - before).abs().max().item()

    def seconds(self, run: Callable[[], Any], repeats: int = 1) -> float:
        self.finish()
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        self.finish()
        return (time.perf_counter() - start) / repeats

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def set_forward(network: nn.Module, forward: Callable | None) -> None:
    """Let the network compute with this function; None: with its class's own."""
    network.__dict__.pop("forward", None)
    if forward is not None:
        network.forward = forward


def main() -> None:
    system, batch, file, device = sys.argv[1:]
    while not Path(file).exists():
        time.sleep(0.1)
    with torch.inference_mode():
        start = time.perf_counter()
        speed = Speed(system, int(batch), Path(file), torch.device(device))
        print(
            json.dumps({"word": "load", "stage": "", "seconds": time.perf_counter() - start}),
            flush=True,
        )
        for line in sys.stdin:
            word, _, stage = line.strip().partition(" ")
            try:
                answer = speed.answer(word, stage)
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                answer = {"error": message[:500]}
            print(json.dumps({"word": word, "stage": stage, **answer}), flush=True)


if __name__ == "__main__":
    main()
