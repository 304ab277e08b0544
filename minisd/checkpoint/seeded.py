"""Weights for tests: numbers that any implementation can compute from a tensor's name and shape.

The outputs of a model with these weights are well scaled, so a wrong epsilon, padding or order
shows in them. tests/golden/README.md has the rule, and what the original implementations make of
such weights.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minisd.checkpoint.names import POSITION_IDS, PREFIXES, SCHEDULE_BUFFERS, Shapes
from minisd.schedule import ABAR, BETAS
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import LENGTH
from minisd.unet import SD1, Row, Table, UNet
from minisd.vae import VAE

TINY_FACTS = {"unet_heads": 8, "text_heads": 4, "native_size": 64, "name": "tiny"}


def seeded_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """float32 normal numbers, seeded with the name; betas, abar and position ids are real."""
    if name == "betas":
        return torch.tensor(BETAS, dtype=torch.float32)
    if name == "alphas_cumprod":
        return torch.tensor(ABAR, dtype=torch.float32)
    if name == POSITION_IDS:
        return torch.arange(LENGTH)[None]
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    z = rng.standard_normal(size=int(np.prod(shape))).reshape(shape)
    if len(shape) == 1:
        z = 1 + 0.05 * z if name.endswith(".weight") else 0.02 * z
    elif "embedding" in name:
        z = 0.02 * z
    else:
        z = z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


def seeded_tensors(shapes: Shapes) -> dict[str, Tensor]:
    return {name: seeded_tensor(name, shape) for name, shape in shapes.items()}


def sd1_shapes() -> Shapes:
    """The 1,143 entries of an SD 1.x checkpoint: name -> shape."""
    with torch.device("meta"):
        shapes = named_shapes(UNet(), VAE(), TextEncoder())
    return {**dict.fromkeys(SCHEDULE_BUFFERS, (1000,)), **shapes, POSITION_IDS: (1, LENGTH)}


def tiny_shapes() -> Shapes:
    """A small model: SD 1.x's UNet at a tenth of its width, a narrow VAE and text encoder."""

    def narrow(row: Row) -> Row:
        return Row(row.layers, row.c_in // 10 if row.c_in != 4 else 4, row.c_out // 10)

    table = Table(
        tuple(map(narrow, SD1.input_blocks)),
        narrow(SD1.middle_block),
        tuple(map(narrow, SD1.output_blocks)),
        c_context=64,
    )
    with torch.device("meta"):
        return named_shapes(
            UNet(table), VAE(32, (32, 64, 128, 128)), TextEncoder(64, layers=2, hidden=256, heads=4)
        )


def named_shapes(unet: nn.Module, vae: nn.Module, text_encoder: nn.Module) -> Shapes:
    """Every tensor of the three models by its name in a checkpoint."""
    models = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    return {
        PREFIXES[part] + name: tuple(tensor.shape)
        for part, model in models.items()
        for name, tensor in model.state_dict().items()
    }


def save_seeded(path: Path, tiny: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """Write a .safetensors file of these weights: 4.3 GB in float32 (SD 1.x), or 69 MB (tiny)."""
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in seeded_tensors(tiny_shapes() if tiny else sd1_shapes()).items()
    }
    save_file(tensors, path, metadata={"minisd": json.dumps(TINY_FACTS if tiny else {})})
    return path
