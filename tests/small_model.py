"""A model with every kind of layer, so small that a step takes milliseconds; name-seeded."""

from pathlib import Path

import torch

from minisd.checkpoint.seeded import seeded_tensor
from minisd.stable_diffusion import StableDiffusion
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import Tokenizer
from minisd.unet import Row, Table, UNet
from minisd.vae import VAE

TABLE = Table(
    input_blocks=(
        Row("conv", 4, 32),
        Row("res attn", 32, 32),
        Row("down", 32, 32),
        Row("res attn", 32, 64),
    ),
    middle_block=Row("res attn res", 64, 64),
    output_blocks=(
        Row("res attn", 64 + 64, 64),
        Row("res up", 64 + 32, 64),
        Row("res attn", 64 + 32, 32),
        Row("res", 32 + 32, 32),
    ),
    c_context=32,
)


def small_model(device: str = "cpu") -> StableDiffusion:
    """For pictures of 16x16 pixels, whose latents are 8x8. Sides are multiples of 4."""
    models = {
        "unet": UNet(TABLE, heads=4),
        "vae": VAE(32, (32, 64), 1),
        "text_encoder": TextEncoder(32, layers=1, hidden=64, heads=2),
    }
    for part, model in models.items():
        tensors = model.state_dict()
        named = {name: seeded_tensor(f"{part}.{name}", x.shape) for name, x in tensors.items()}
        model.load_state_dict(named)
        model.to(device).requires_grad_(False).eval()
    return StableDiffusion(
        Tokenizer(), **models, path=Path("small"), device=torch.device(device), multiple=4,
        name="small", native_size=16,
    )  # fmt: skip
