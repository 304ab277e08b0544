"""What a sweep measures of each picture. A metric is a function `(drawn: Drawn) -> number or None`.

None is an empty cell: there is nothing to compare with. A metric of your own is FILE.py:FUNCTION.
It gets the picture as it is in the file, the recipe, the init image, the latent and the model:

    def redness(drawn):
        return np.asarray(drawn.image)[..., 0].mean()

`to_previous`, the distance to the neighbours, is in table.py: it needs the other pictures too.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.guidance import Guided
from minisd.prompts.states import text_states
from minisd.recipes import DIALECTS, Job, Recipe
from minisd.run import lookup
from minisd.stable_diffusion import StableDiffusion
from minisd.sweeps.recipe_lists import FIRST_COLUMNS, LAST_COLUMNS

PREVIOUS = "to_previous"
REFERENCE_STEPS = 60
CAPTION_LEVELS = (1.0, 2.0, 4.0, 8.0)  # where a prompt decides what becomes of the noise
CLIP_MODEL = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Drawn:
    """A picture, and what it was drawn from."""

    image: Image.Image  # RGB
    latent: Tensor  # (1, 4, h, w), the final one
    job: Job  # ready to draw the picture again: job.image is the init image, as it was used
    sigma: float  # the level of the noise that was added

    @property
    def recipe(self) -> Recipe:
        return self.job.recipe

    @property
    def sd(self) -> StableDiffusion:
        return self.job.sd

    @property
    def init_image(self) -> Image.Image | None:
        """RGB, at the size of the picture."""
        image = self.job.image
        return image if isinstance(image, Image.Image) else None

    def reference(self) -> Image.Image | None:
        """The picture of many steps of k_heun, from the same noise at the same level.

        It is close to the exact solution of equation 1 of Karras et al. 2022. None for dialects
        and at strength 0.
        """
        if DIALECTS[self.recipe.dialect] or not self.sigma:
            return None
        many = replace(
            self.recipe,
            sampler="k_heun",
            strength=1.0,  # so that the run starts at the schedule's first level
            steps=REFERENCE_STEPS,
            options={},
            schedule=lambda steps: karras(self.sigma, steps),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the schedule starts where the strength says
            return replace(self.job, recipe=many).draw().image


Metric = Callable[[Drawn], float | None]


def karras(sigma: float, steps: int) -> list[float]:
    """Levels from sigma to 0, even in sigma^(1/7): Karras et al. 2022, equation 5."""
    high, low = sigma ** (1 / 7), min(0.03, sigma / 2) ** (1 / 7)
    return [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]


# ---- two pictures --------------------------------------------------------------------------------


def pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3), whole numbers in 0..255 as int64."""
    return np.asarray(image.convert("RGB"), dtype=np.int64)


def distance(a: Image.Image, b: Image.Image) -> float:
    """Root mean square of the difference over pixels and channels, in levels of 255."""
    return float(((pixels(a) - pixels(b)) ** 2).mean() ** 0.5)


def psnr_of(a: Image.Image, b: Image.Image) -> float:
    """Peak signal to noise ratio in dB; infinite for equal pictures."""
    difference = distance(a, b)
    return 20 * math.log10(255 / difference) if difference else math.inf


def ssim_of(a: Image.Image, b: Image.Image) -> float | None:
    """Wang et al. 2004: a Gaussian window of 11 pixels and sigma 1.5, the mean over the colours.

    None for pictures with a side below 11 pixels.
    """
    if min(a.size) < 11:
        return None
    window = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(x: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            x = np.lib.stride_tricks.sliding_window_view(x, 11, axis) @ window
        return x

    x, y = pixels(a) / 255, pixels(b) / 255
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    ratio = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(ratio.mean())


def edges_of(a: Image.Image, b: Image.Image) -> float | None:
    """Pearson's correlation of the strength of edges in cells of 4x4 pixels.

    None if one of the pictures has no edges, or only equal ones.
    """
    strengths = []
    for image in (a, b):
        grey = pixels(image).mean(2)
        dx, dy = grey[:-1, 1:] - grey[:-1, :-1], grey[1:, :-1] - grey[:-1, :-1]
        strength = np.pad(np.hypot(dx, dy), (0, 1))
        h, w = (side // 4 for side in strength.shape)
        cells = strength[: 4 * h, : 4 * w].reshape(h, 4, w, 4).mean((1, 3)).ravel()
        strengths.append(cells - cells.mean())
    product = float((strengths[0] ** 2).sum() * (strengths[1] ** 2).sum()) ** 0.5
    return float((strengths[0] * strengths[1]).sum()) / product if product else None


# ---- metrics -------------------------------------------------------------------------------------


def with_init_image(measure: Callable[[Image.Image, Image.Image], float | None]) -> Metric:
    """The metric that compares the picture with its init image."""

    def metric(drawn: Drawn) -> float | None:
        return None if drawn.init_image is None else measure(drawn.image, drawn.init_image)

    return metric


def to_reference(drawn: Drawn) -> float | None:
    """Distance to the reference of many steps: what the sampler's own error changed."""
    reference = drawn.reference()
    return None if reference is None else distance(drawn.image, reference)


@torch.inference_mode()
def caption(drawn: Drawn) -> float:
    """How much the prompt helps the model itself to see the noise in this picture.

    Noise of several levels is added to the picture's latent. The network predicts that noise with
    the prompt and with the empty prompt; the metric is the share of the error that the prompt
    removes. It is above 0 where the model finds the prompt in the picture. After Li et al. 2023
    ("Your Diffusion Model is Secretly a Zero-Shot Classifier"), equation 6.
    """
    sd, recipe = drawn.sd, drawn.recipe
    context, _ = text_states(sd, recipe.prompt, recipe.normalize)
    predict_eps = Guided(sd.unet, context, sd.text_states(""), 1.0)
    generator = torch.Generator().manual_seed(0)
    errors = np.zeros(2)
    for sigma in CAPTION_LEVELS:
        noise = torch.randn((1, *drawn.latent.shape[1:]), generator=generator).to(drawn.latent)
        both = predict_eps.both(drawn.latent + sigma * noise, sigma)
        answers = [eps.float().cpu().numpy().astype(float) for eps in both]
        errors += [((eps - noise.cpu().numpy()) ** 2).mean() for eps in answers]
    return float(1 - errors[1] / errors[0])


def lpips(drawn: Drawn) -> float | None:
    """LPIPS (Zhang et al. 2018, AlexNet) to the init image. Needs the package lpips."""
    if drawn.init_image is None:
        return None
    tensors = [
        torch.from_numpy(pixels(image)).permute(2, 0, 1)[None] / 127.5 - 1
        for image in (drawn.image, drawn.init_image)
    ]
    return float(outside_exact_mode(lpips_network(), *tensors))


@cache
def lpips_network() -> Callable[..., Any]:
    return import_module("lpips").LPIPS(net="alex", verbose=False)


def clip_score(drawn: Drawn) -> float:
    """100 times the cosine of prompt and picture in CLIP (Hessel et al. 2021), 0 if negative.

    Needs the package transformers, and downloads openai/clip-vit-base-patch32.
    """
    model, processor = clip_network()

    def cosine() -> float:
        inputs = processor(
            text=[drawn.recipe.prompt], images=drawn.image, return_tensors="pt", truncation=True
        )
        with torch.inference_mode():
            result = model(**inputs)
        return float(torch.cosine_similarity(result.image_embeds, result.text_embeds))

    return 100 * max(0.0, outside_exact_mode(cosine))


@cache
def clip_network() -> tuple[Any, Any]:
    package = import_module("transformers")
    parts = (package.CLIPModel, package.CLIPProcessor)
    return tuple(part.from_pretrained(CLIP_MODEL) for part in parts)


def outside_exact_mode(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, with torch's own arithmetic: exact mode ends at its thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


METRICS: dict[str, Metric] = {
    "to_init": with_init_image(distance),
    "psnr": with_init_image(psnr_of),
    "ssim": with_init_image(ssim_of),
    "edges": with_init_image(edges_of),
    "to_reference": to_reference,
    "caption": caption,
    "lpips": lpips,
    "clip_score": clip_score,
}
DEFAULTS = ("to_init", PREVIOUS)


def functions_of(metrics: Sequence[str | Metric]) -> dict[str, Metric]:
    """The functions by the names of their columns. Raises ValueError, OSError.

    The column of FILE.py:FUNCTION is called FUNCTION.
    """
    functions: dict[str, Metric] = {}
    for metric in metrics:
        if metric == PREVIOUS:
            continue
        name = getattr(metric, "__name__", str(metric).rpartition(":")[2])
        function = lookup("metric", metric, METRICS)
        if name in (*functions, *FIRST_COLUMNS, *LAST_COLUMNS):
            raise ValueError(f"two columns of the table would be called {name}: rename the metric")
        try:
            for network, key in ((lpips_network, "lpips"), (clip_network, "clip_score")):
                if name == key and function is METRICS[key]:
                    network()
        except ImportError as error:
            raise ValueError(f"the metric {name} needs a package: {error}") from None
        functions[name] = function
    return functions
