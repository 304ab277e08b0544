"""minisd.fast computes the same."""

import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import minisd
from minisd import fast

PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_strips_have_no_seams(monkeypatch, dtype, tolerance, packed):
    """Of the largest value, in a picture of several strips: rounding, and bfloat16's."""
    sd, rng = minisd.load(dtype=dtype), torch.Generator().manual_seed(1)
    z, image = torch.randn(2, 4, 24, 20, generator=rng), torch.rand(1, 3, 112, 96, generator=rng)
    before = sd.vae.decode(z), sd.vae.moments(image)
    monkeypatch.setattr(fast, "STRIP", 1 << 14)
    monkeypatch.setattr(fast, "LARGE", 1 << 14)
    assert len(fast.strips(torch.empty(1, 32, 112, 96))) == 7
    if packed:
        fast.pack(sd)
    fast.work_in_strips(sd)
    for a, b in zip(before, (sd.vae.decode(z), sd.vae.moments(image))):
        assert (a - b).abs().max() <= tolerance * a.abs().max()


@pytest.mark.parametrize("others", [False, True])
def test_halves_that_are_the_same_are_worked_out_once(others):
    """The first convolution sees one x; where the halves differ, or the times, it sees both."""
    sd, sizes = minisd.load(), []
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2)).repeat(2, 1, 1, 1)
    x[0] += others
    t, context = (
        torch.full((4,), 500.0),
        torch.cat([sd.text_states("")] * 2 + [sd.text_states("fire")] * 2),
    )
    with torch.inference_mode():
        before = sd.unet(x, t, context)
        fast.pack(sd)
        sd.unet.input_blocks[0].register_forward_hook(lambda *a: sizes.append(len(a[2])))
        after = sd.unet(x, t, context)
    assert sizes == [4 if others else 2]
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_packed_weights_change_rounding_alone(dtype, tolerance):
    """Sums run in another order: rounding, 1e-7 or 4e-3, grown by guidance over four steps."""
    settings = {"steps": 6, "strength": 0.7, "guidance": 4, "seed": 5}
    sd = minisd.load(dtype=dtype)
    before = minisd.img2img(sd, "fire", PICTURE, **settings).latent
    fast.pack(sd)
    after = minisd.img2img(sd, "fire", PICTURE, **settings).latent
    assert (after - before).norm() <= tolerance * before.norm()
    assert not any(type(m) in (torch.nn.Conv2d, torch.nn.Linear) for m in sd.unet.modules())


def test_compiled_unet_computes_the_same():
    """Its graph, run by PyTorch's own operations: what generated code does is its makers' to test.
    One graph, without a break."""
    sd = minisd.load()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    given = x, torch.tensor([10.0, 900.0]), sd.text_states("fire").repeat(2, 1, 1)
    with torch.inference_mode():
        before = sd.unet(*given)
        fast.compile(sd, backend="eager", fullgraph=True)
        assert torch.allclose(sd.unet(*given), before, atol=1e-5)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_kept_memory_is_not_fetched_anew():
    """Pages of 4 kB that the system had to hand out for the same 64 MB, ten times over."""
    code = """
import resource, torch
from minisd.fast import keep_memory
{}
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):  # up to three of them find the heap too small still
    torch.ones(1 << 24)
before = pages()
for _ in range(10):
    torch.ones(1 << 24)
print(pages() - before)
"""
    keeps, gives_back = (
        int(subprocess.check_output([sys.executable, "-c", code.format(call)]))
        for call in ("keep_memory()", "")
    )
    assert keeps < gives_back / 4
