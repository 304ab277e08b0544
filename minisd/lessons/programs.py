"""Programs with a mistake, to be found from the picture and the ledger.

Each is img2img with one part replaced by what a real program or course once had there. The lessons
call them A, B and C; which one is wrong is for the learner to say, so look here last.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from minisd.dialects.solvers import lms_by_position
from minisd.guidance import Guided
from minisd.images import to_pil
from minisd.run import Decoded, Encoded, Noised, Observer, encode, ignore, random_stream
from minisd.samplers import Sampler, k_dpmpp_2, k_euler, k_euler_a, k_heun, k_lms
from minisd.schedule import Schedule, ddim, model
from minisd.stable_diffusion import StableDiffusion


def right_insert(x0: Tensor, noise: Tensor, sigmas: list[float], start: int) -> Tensor:
    return x0 + sigmas[start] * noise


@dataclass(frozen=True)
class Program:
    """One run of img2img with 10 steps, in parts that can be replaced."""

    skipped: int = 3  # steps: strength 0.7
    schedule: Schedule = model
    insert: Callable[[Tensor, Tensor, list[float], int], Tensor] = right_insert
    levels: Callable[[list[float], int], list[float]] = lambda sigmas, start: sigmas[start:]
    sampler: Sampler = k_euler
    guided: type[Guided] = Guided
    step_seed: int | None = None  # of the sampler's fresh noise; None: the first generator goes on
    decoder_gain: float = 1.0  # of the latent, before it is decoded
    head_factor: int = 1  # times the heads of each attention

    @torch.inference_mode()
    def draw(
        self,
        sd: StableDiffusion,
        prompt: str,
        drawing: Image.Image,
        observe: Observer = ignore,
        guidance: float = 4.0,
        seed: int = 1,
    ) -> Image.Image:
        """The picture. The events are img2img's, with what this program really computes."""
        sigmas, rng = self.schedule(10), torch.Generator().manual_seed(seed)
        x0 = encode(sd, drawing)
        observe(Encoded(x0))
        noise = torch.randn(x0.shape, generator=rng)
        x = self.insert(x0, noise, sigmas, self.skipped)
        levels = self.levels(sigmas, self.skipped)
        observe(Noised(x0, noise, levels[0], x))
        if self.step_seed is not None:
            rng.manual_seed(self.step_seed)
        predict_eps = self.guided(sd.unet, sd.text_states(prompt), sd.text_states(""), guidance)
        with heads_multiplied(sd, self.head_factor):
            for step in self.sampler(predict_eps, x, levels, **random_stream(self.sampler, [rng])):
                observe(step)
                x = step.x_next
        decoded = sd.vae.decode(self.decoder_gain * x / (levels[-1] ** 2 + 1) ** 0.5)
        observe(Decoded(decoded))
        return to_pil(decoded)


@contextmanager
def heads_multiplied(sd: StableDiffusion, factor: int) -> Iterator[None]:
    layers = [layer for name, layer in sd.unet.named_modules() if name.endswith(("attn1", "attn2"))]
    heads = [layer.heads for layer in layers]
    for layer in layers:
        layer.heads *= factor
    try:
        yield
    finally:
        for layer, number in zip(layers, heads, strict=True):
            layer.heads = number


def one_level_early(x0: Tensor, noise: Tensor, sigmas: list[float], start: int) -> Tensor:
    """CompVis: scripts/img2img.py, where stochastic_encode gets t_enc and not t_enc - 1."""
    return x0 + sigmas[start - 1] * noise


def scaled_image(x0: Tensor, noise: Tensor, sigmas: list[float], start: int) -> Tensor:
    """InvokeAI's development version of late September 2022: the papers' x, times sigma."""
    sigma = sigmas[start]
    return (x0 + sigma * noise) / (sigma**2 + 1) ** 0.5 * sigma


def one_step_short(sigmas: list[float], start: int) -> list[float]:
    """The same version of InvokeAI: sigmas[-S:], where S steps need S + 1 levels."""
    return sigmas[start + 1 :]


class Unscaled(Guided):
    """The network gets x as it is: a cell of the course "Stable Diffusion Deep Dive"."""

    def network_input(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return x, super().network_input(x, sigma)[1]


class PlusSign(Guided):
    """The formula in labml's annotated implementation: s * eps_cond + (s - 1) * eps_uncond."""

    def guide(self, eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        assert isinstance(self.guidance, float)
        return self.guidance * eps_cond + (self.guidance - 1) * eps_uncond


class FromTheWords(Guided):
    """Imagen's paper counts from eps_cond, so its guidance is one less. That is right too."""

    def guide(self, eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        assert isinstance(self.guidance, float)
        return eps_cond + self.guidance * (eps_cond - eps_uncond)


by_position = partial(lms_by_position, before=model(10)[:3])  # diffusers' LMS
late_insert = partial(Program, insert=lambda x0, n, sigmas, i: x0 + sigmas[i + 1] * n)

LINE = {"A": Program(), "B": Program(skipped=4), "C": Program(insert=one_level_early)}
LOOK = {
    "A": Program(skipped=7, insert=scaled_image),
    "B": Program(skipped=7),
    "C": Program(skipped=8),
}
LOOP = {"A": Program(), "B": Program(sampler=k_heun), "C": Program(guided=Unscaled)}
STRENGTH = {
    "A": Program(),
    "B": late_insert(levels=one_step_short),
    "C": Program(sampler=k_dpmpp_2),
}
# AUTOMATIC1111's DDIM leaves out the last step of the list.
ENDS = {
    "A": Program(skipped=7),
    "B": Program(skipped=7, schedule=ddim),
    "C": Program(skipped=7, schedule=ddim, levels=lambda sigmas, start: sigmas[start:-1]),
}
MEMORY = {"A": Program(sampler=k_lms), "B": Program(sampler=by_position), "C": Program()}
# ComfyUI in 2025: on a CPU, the steps' generator got the seed of the first noise.
CHANCE = {
    "A": Program(sampler=k_euler_a),
    "B": Program(sampler=k_euler_a, step_seed=1),
    "C": Program(sampler=k_euler_a, step_seed=2),
}
WORDS = {"A": Program(guided=PlusSign), "B": Program(guided=FromTheWords), "C": Program()}
# diffusers' unconditional pipeline until September 2023.
LATENT = {"A": Program(), "B": Program(skipped=2), "C": Program(decoder_gain=0.18215)}
HEADS = {"A": Program(head_factor=2), "B": Program(), "C": Program(skipped=4)}
