"""Stand-ins for a model: they cost nothing, and record what the samplers pass to the network."""

import torch
from torch import Tensor


class RecordingUNet(torch.nn.Module):
    """It records x and t of each call, and predicts no noise."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.calls.append((x.clone(), t.clone()))
        return torch.zeros_like(x)


class PixelVAE:
    """An autoencoder whose latents are the picture's own pixels: RGB, and red again."""

    factor = 1

    def encode(self, image: Tensor) -> Tensor:
        return torch.cat([image, image[:, :1]], dim=1)

    def decode(self, latent: Tensor) -> Tensor:
        return latent[:, :3]


class StandIn:
    """An `sd` of these two, for pictures of 16x16 pixels."""

    multiple, native_size, device = 16, 16, torch.device("cpu")

    def __init__(self):
        self.unet, self.vae = RecordingUNet(), PixelVAE()

    def text_states(self, prompt: str) -> Tensor:
        return torch.zeros(1, 77, 8)
