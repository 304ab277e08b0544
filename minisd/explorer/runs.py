"""One drawing, drawn over at several strengths, with all that happens on the way."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minisd.attention_maps import AttentionMaps
from minisd.checkpoint import StableDiffusion
from minisd.img2img import img2img
from minisd.step import Step
from minisd.trace.ledger import Ledger, auditing
from minisd.trace.watch import together


@dataclass
class Run:
    """What was seen of one strength."""

    strength: float
    ledger: Ledger
    maps: AttentionMaps
    image: Image.Image  # the result
    latent: Tensor  # (1, 4, h, w), what it was decoded from
    encoded: Tensor  # (1, 4, h, w), the drawing's
    steps: list[Step] = field(default_factory=list)
    # the pictures of `encoded` and of each step's x0 estimate: what would come out at this point
    pictures: list[Tensor] = field(default_factory=list)  # (1, 3, H, W) each


@torch.inference_mode()
def runs(
    sd: StableDiffusion,
    pieces: list[str],
    prompt: str | Tensor,
    image: Image.Image,
    strengths: list[float],
    *,
    observe: Callable[..., None],
    **settings: Any,
) -> Iterator[Run]:
    """A Run for each strength. pieces: the prompt's words, as AttentionMaps takes them.

    Each is a call of img2img with `settings`, so that what is shown is what `minisd img2img` draws,
    to the last bit. One batch of all strengths that are at the same sigma would save 30 % of the
    network's time on a CPU (2.9 s instead of 4.2 s with the weights that come with minisd), and
    would be off by 2e-5: matrix products are summed in another order for another batch size.
    """
    prompt = sd.text_states(prompt)  # (1, 77, C), once for all
    for strength in strengths:
        seen: dict[str, Any] = {}
        steps: list[Step] = []

        def record(name: str, seen=seen, steps=steps, **values: Any) -> None:
            if name == "encoded":
                seen["encoded"] = values["x0"]
            elif name == "step":
                steps.append(values["step"])

        with AttentionMaps(sd, pieces) as maps, auditing(sd.unet) as ledger:
            result = img2img(
                sd,
                prompt,
                image,
                strength=strength,
                observe=together(record, maps, ledger, observe),
                **settings,
            )
        if not result.latent.isfinite().all():
            said = f"the run at strength {strength:g} gave numbers that are not finite"
            raise ValueError(f"{said}; try --dtype float32 or another sampler")
        pictures = [sd.vae.decode(x0) for x0 in (seen["encoded"], *(step.x0 for step in steps))]
        yield Run(
            strength,
            ledger,
            maps,
            result.image,
            result.latent,
            seen["encoded"],
            steps,
            pictures,
        )
