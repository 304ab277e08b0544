"""minisd.fast computes the same."""

import numpy as np
import pytest
import torch
from PIL import Image

import minisd
from minisd import fast

PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_packed_weights_change_rounding_alone(dtype, tolerance):
    """Sums run in another order: float32 rounding, and bfloat16's, grown over four steps."""
    settings = {"steps": 6, "strength": 0.7, "guidance": 4, "seed": 5}
    sd = minisd.load(dtype=dtype)
    before = minisd.img2img(sd, "fire", PICTURE, **settings).latent
    fast.pack(sd)
    after = minisd.img2img(sd, "fire", PICTURE, **settings).latent
    assert (after - before).norm() <= tolerance * before.norm()
    assert not any(type(m) in (torch.nn.Conv2d, torch.nn.Linear) for m in sd.unet.modules())
