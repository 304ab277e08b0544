"""Stop a run at the first value that is NaN or Inf. Its picture would be black.

    img2img(sd, "fire", "drawing.png", observe=stop_at_nan(sd))

float16 has no numbers above 65,504: activations of some models are larger. They become Inf, and
then NaN. Such a run cannot recover.
"""

import torch
from torch import Tensor

from minisd.run import Decoded, Encoded, Event, Observer
from minisd.samplers import Step
from minisd.stable_diffusion import StableDiffusion


class NotFinite(ValueError):
    """A run computed NaN or Inf."""


def stop_at_nan(sd: StableDiffusion) -> Observer:
    """An observer that raises NotFinite, which says where in the run, and what helps."""
    dtype = next((weight.dtype for weight in sd.unet.parameters()), None)
    remedy = "choose another sampler or schedule, or less guidance"
    if dtype == torch.float16:
        remedy = "its numbers are too large for float16: load the model as bfloat16 or float32"

    def check(values: Tensor, name: str) -> None:
        if not values.isfinite().all():
            raise NotFinite(f"{name} is not finite (NaN or Inf); {remedy}")

    def observe(event: Event) -> None:
        match event:
            case Encoded():
                check(event.x0, "the encoder's latent of the init image")
            case Step():
                check(event.eps, f"step {event.i + 1}: the UNet's prediction of the noise")
                check(event.x_next, f"step {event.i + 1}: the sampler's next latent")
            case Decoded():
                check(event.image, "the decoder's picture")

    return observe
