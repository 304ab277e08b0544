"""What the tests share: name-seeded weights (tests/golden/README.md), at two sizes."""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import minisd

# The small models are as fast with one thread, and many times slower with two on a machine that is
# busy otherwise: threads wait for each other at every layer. Full size has all (all_threads).
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"


def seeded(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights that any implementation can make for itself from a tensor's name and shape."""
    from minisd.schedule import ABAR, BETAS

    if key in ("betas", "alphas_cumprod"):
        return torch.tensor(BETAS if key == "betas" else ABAR, dtype=torch.float32)
    if key.endswith("position_ids"):
        return torch.arange(77)[None]
    z = (
        np.random.RandomState(zlib.crc32(key.encode()))
        .standard_normal(size=int(np.prod(shape)))
        .reshape(shape)
    )
    if len(shape) == 1:
        z = 1 + 0.05 * z if key.endswith(".weight") else 0.02 * z
    elif "embedding" in key:
        z = 0.02 * z
    else:
        z = z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


def manifest() -> dict[str, tuple[int, ...]]:
    return {
        key: tuple(shape)
        for key, shape in json.loads((GOLDEN / "sd1_manifest.json").read_text()).items()
    }


def tiny_manifest() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the small size: SD 1.x's table at a tenth of the width, and so on."""
    from minisd.checkpoint import PREFIXES
    from minisd.text_encoder import TextEncoder
    from minisd.unet import SD1, Row, Table, UNet
    from minisd.vae import VAE

    def narrow(row: Row) -> Row:
        return Row(row.layers, row.c_in // 10 if row.c_in != 4 else 4, row.c_out // 10)

    rows = [tuple(narrow(row) for row in rows) for rows in (SD1.input_blocks, SD1.output_blocks)]
    with torch.device("meta"):
        models = {
            "unet": UNet(Table(rows[0], narrow(SD1.middle_block), rows[1], 64), heads=8),
            "vae": VAE(32, (32, 64, 128, 128), 2),
            "text_encoder": TextEncoder(64, 2, 256, heads=4),
        }
    return {
        PREFIXES[part] + name: tuple(tensor.shape)
        for part, model in models.items()
        for name, tensor in model.state_dict().items()
    }


def golden(size: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(GOLDEN / f"{size}.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    facts = {
        "minisd": json.dumps({"unet_heads": 8, "text_heads": 4, "native_size": 64, "name": "tiny"})
    }
    save_file(
        {key: seeded(key, shape) for key, shape in tiny_manifest().items()}, path, metadata=facts
    )
    return path


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> minisd.StableDiffusion:
    return minisd.load(tiny_path)


@pytest.fixture(scope="session")
def sd1_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of all 1,143 entries at full size, 4.3 GB; removed at the end."""
    path = tmp_path_factory.mktemp("weights") / "sd1.safetensors"
    save_file({key: seeded(key, shape) for key, shape in manifest().items()}, path)
    yield path
    path.unlink()


@pytest.fixture(scope="session")
def sd1(sd1_path: Path) -> minisd.StableDiffusion:
    return minisd.load(sd1_path)


@pytest.fixture(scope="module")
def all_threads() -> Iterator[None]:
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def emoji() -> minisd.StableDiffusion:
    return minisd.load()
