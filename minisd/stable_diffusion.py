"""What `sd` is: the three models of Stable Diffusion 1.x, and the tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minisd.text_encoder import TextEncoder
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE

# Latent -> RGB, a quick look without the decoder: rgb in [-1, 1] = latent @ factors + bias. Factors
# for SD 1.4 by keturn; the seed document's figures were drawn with these.
SD1_LATENT_RGB = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)


@dataclass
class StableDiffusion:
    """A loaded checkpoint: `minisd.load` makes it."""

    tokenizer: Tokenizer
    text_encoder: TextEncoder  # always float32: it runs once, and every step uses its output
    unet: UNet
    vae: VAE
    path: Path
    device: torch.device
    multiple: int = 64  # sides of pictures must be multiples: 8 in the autoencoder, 8 in the UNet
    name: str = "SD 1.x"
    licence: str = ""
    native_size: int = 512  # side in pixels of the pictures that it was trained on
    latent_rgb: Sequence[Sequence[float]] = SD1_LATENT_RGB
    latent_rgb_bias: Sequence[float] = (0.0, 0.0, 0.0)
    vae_path: Path | None = None  # the file of an autoencoder in place of the checkpoint's own
    ema: bool = False  # whether the UNet has the training averages of its weights
    abar: Sequence[float] | None = None  # (1000,), its training schedule, if it is not SD 1.x's

    def text_states(self, prompt: str | Tensor | None) -> Tensor:
        """(1, 77, C) float32, what the UNet reads of a prompt (None: ""). States stay the same."""
        if isinstance(prompt, Tensor):
            return prompt
        return self.text_encoder(self.tokenizer([prompt or ""]))
