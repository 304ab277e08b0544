"""The same bytes each time: run after run, alone or in a batch, with one thread or two."""

import numpy as np
import pytest
import torch
from PIL import Image

import minisd

PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8))
SETTINGS = {"steps": 6, "strength": 0.7, "guidance": 4}


@pytest.fixture(scope="module")
def first(emoji):
    return minisd.img2img(emoji, "fire", PICTURE, seed=5, **SETTINGS)


def assert_same(a, b):
    assert torch.equal(a.latent, b.latent) and a.image.tobytes() == b.image.tobytes()


def test_run_after_run(emoji, first):
    torch.manual_seed(123)
    torch.randn(1000)  # the global stream has no part in it
    assert_same(minisd.img2img(emoji, "fire", PICTURE, seed=5, **SETTINGS), first)
    state = torch.get_rng_state()
    minisd.img2img(emoji, "fire", PICTURE, seed=5, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_model_another_run(first):
    assert_same(minisd.img2img(minisd.load(), "fire", PICTURE, seed=5, **SETTINGS), first)


def test_image_of_a_batch_equals_itself_alone(emoji, first):
    batch = [minisd.img2img(emoji, "fire", PICTURE, seed=s, **SETTINGS) for s in (3, 4, 5, 6)]
    assert_same(batch[2], first)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(emoji, first, threads):
    """True of the bundled weights on x86; oneDNN promises it for one CPU and thread count only."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = minisd.img2img(emoji, "fire", PICTURE, seed=5, **SETTINGS)
    finally:
        torch.set_num_threads(before)
    difference = (again.latent - first.latent).abs().max()
    # Not bits across thread counts: a reduction may be split elsewhere. Float32 rounding, grown
    # over four steps; another seed's latent is 1 away.
    assert difference <= (0 if threads == before else 1e-3)


def test_observed_or_not(emoji, first):
    seen = []

    def observe(name, **values):
        seen.append(name)

    watched = minisd.img2img(emoji, "fire", PICTURE, seed=5, observe=observe, **SETTINGS)
    assert_same(watched, first)
    assert seen == ["encoded", "noised", "step", "step", "step", "step", "decoded"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(first, dtype):
    """UNet and autoencoder in half precision; what the sampler adds up stays float32."""
    sd = minisd.load(dtype=dtype)
    steps = []

    def observe(name, **values):
        steps.extend(values.values() if name == "step" else [])

    result = minisd.img2img(sd, "fire", PICTURE, seed=5, observe=observe, **SETTINGS)
    assert sd.unet.out[2].weight.dtype == sd.vae.quant_conv.weight.dtype == dtype
    assert sd.text_encoder.final_layer_norm.weight.dtype == torch.float32
    assert result.latent.dtype == steps[0].eps.dtype == steps[0].x_next.dtype == torch.float32
    error = ((result.latent - first.latent).norm() / first.latent.norm()).item()
    print(f"{error:.1e}")
    # bfloat16 keeps 8 bits (4e-3), float16 11 (5e-4); guidance 4 (which counts an error up to 7
    # times) and four steps multiply that. Another seed's latent is 1 away.
    assert error <= {torch.bfloat16: 0.1, torch.float16: 0.0125}[dtype]


def test_dtype_must_be_one_of_three():
    with pytest.raises(ValueError, match="dtype must be"):
        minisd.load(dtype=torch.float64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_cuda(first):
    sd = minisd.load(device="cuda")
    result = minisd.img2img(sd, "fire", PICTURE, seed=5, **SETTINGS)
    # the same noise, since it is drawn on the CPU; other kernels, so other rounding
    assert (result.latent.cpu() - first.latent).abs().max() <= 1e-2
