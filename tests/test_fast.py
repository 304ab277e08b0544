"""minisd.fast computes the same."""

import platform
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import minisd
from minisd import fast
from minisd.attention import attention
from minisd.fast import blocks, memory, packed, strips, tuned
from minisd.fast.halves import share_halves
from minisd.observe.ledger import Ledger

PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.slow
def test_the_documented_example(tmp_path, monkeypatch, tiny_path):
    """The docstring's lines run as written, with a small model under the file name there."""
    (tmp_path / "sd-v1-4.ckpt").write_bytes(tiny_path.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fast, "keep_memory", lambda: None)  # it would change this whole process
    example = re.search(r"(    .*\n|\n)+", fast.__doc__)[0]
    names = {}
    exec(re.sub(r"^ {4}", "", example, flags=re.M), names)
    assert type(names["sd"].unet.out[2]).__name__ == "PackedConv2d"
    assert len(re.findall(r"fast\.\w+", example)) == 3


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_strips_have_no_seams(monkeypatch, dtype, tolerance, packed):
    """A picture of several strips differs by rounding: this much of the largest value."""
    sd, rng = minisd.load(dtype=dtype), torch.Generator().manual_seed(1)
    z, image = torch.randn(2, 4, 24, 20, generator=rng), torch.rand(1, 3, 112, 96, generator=rng)
    before = sd.vae.decode(z), sd.vae.moments(image)
    monkeypatch.setattr(strips, "STRIP", 1 << 14)
    monkeypatch.setattr(strips, "LARGE", 1 << 14)
    assert len(strips.row_ranges(torch.empty(1, 32, 112, 96))) == 7
    if packed:
        fast.pack(sd)
    fast.work_in_strips(sd)
    for a, b in zip(before, (sd.vae.decode(z), sd.vae.moments(image))):
        assert (a - b).abs().max() <= tolerance * a.abs().max()


# ---- attention in blocks -------------------------------------------------------------------------


def attention_inputs(places, width, spread, dtype, batch=2):
    """q, k and v. The scores' standard deviation is `spread`."""
    rng = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, batch, places, width, generator=rng)
    return [(y * spread**0.5).to(dtype) for y in (q, k)] + [v.to(dtype)]


@pytest.mark.parametrize("spread", [1, 100])
@pytest.mark.parametrize(("places", "rows", "heads"), [(70, 32, 3), (64, 64, 1), (65, 16, 8)])
def test_attention_in_blocks_is_attention(monkeypatch, places, rows, heads, spread):
    """In float64 both are the same formula: only float64 rounding is between them."""
    monkeypatch.setattr(blocks, "ROWS", rows)
    monkeypatch.setattr(blocks, "FEW", 1)
    q, k, v = attention_inputs(places, 24, spread, torch.float64)
    expected = attention(q, k, v, heads)
    result = blocks.attention_in_blocks(q, k, v, heads)
    assert result.shape == expected.shape
    assert (result - expected).abs().max() < 1e-12


@pytest.mark.parametrize("spread", [0.1, 1, 4, 16])
def test_blocks_in_bfloat16_are_nearly_as_exact(spread):
    """Beside float64. Scores, probabilities and results are rounded, each by up to 2^-9. A score is
    rounded by more if the guess of the largest is off: five roundings allow for that.
    """
    q, k, v = attention_inputs(600, 160, spread, torch.bfloat16)
    exact = attention(q.double(), k.double(), v.double(), 4)
    result = blocks.attention_in_blocks(q, k, v, 4)
    assert (result.double() - exact).norm() < 5 * 2**-9 * exact.norm()


def test_a_packed_model_works_in_blocks(monkeypatch, tiny_path):
    """All layers of self-attention, where the processor prefers it; and the results stay."""
    monkeypatch.setattr(blocks, "FEW", 1)
    monkeypatch.setattr(blocks, "ROWS", 40)
    z, image = torch.randn(1, 4, 8, 16), torch.rand(1, 3, 64, 128)
    results, calls = [], []
    count = blocks.attention_in_blocks
    monkeypatch.setattr(
        blocks, "attention_in_blocks", lambda *inputs: calls.append(1) or count(*inputs)
    )
    for prefers in (False, True):
        monkeypatch.setattr(packed, "prefers_blocks", lambda dtype, prefers=prefers: prefers)
        sd = minisd.load(tiny_path)
        fast.pack(sd)
        with torch.inference_mode():
            eps = sd.unet(*guided_batch(sd, size=(16, 8)))
            results.append((eps, sd.vae.decode(z), sd.vae.moments(image)))
        layers = [name for name, _ in sd.unet.named_modules() if name.endswith("attn1")]
        assert len(calls) == prefers * (len(layers) + 2)
    for plain, in_blocks in zip(*results, strict=True):
        assert (plain - in_blocks).abs().max() <= 1e-5 * plain.abs().max()  # float32 rounding


@pytest.mark.parametrize(
    ("dtype", "products", "unit", "expected"),
    [
        (torch.bfloat16, True, False, True),
        (torch.bfloat16, True, True, False),  # AMX: PyTorch's own is faster
        (torch.bfloat16, False, False, False),
        (torch.float32, True, False, False),
    ],
)
def test_where_blocks_are_faster(monkeypatch, dtype, products, unit, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: products)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: unit)
    assert blocks.prefers_blocks(dtype) is expected


# ---- the two halves of a guided call -------------------------------------------------------------


def guided_batch(sd, seed=2, size=(16, 16)):
    """x, t, context of a guided call for one picture."""
    height, width = size
    x = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(seed))
    context = torch.cat([sd.text_states(""), sd.text_states("fire")])
    return x.repeat(2, 1, 1, 1), torch.full((2,), 500.0), context


# The layers of input_blocks.1, a row with attention, and what is before and after it: the size of
# the batch that each gets where the halves are equal.
SIZES = {
    "": 2,
    "input_blocks.0": 2,
    "input_blocks.1.0": 1,
    "input_blocks.1.1.proj_in": 1,
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q": 1,
    "input_blocks.1.1.transformer_blocks.0.attn2": 2,
    "input_blocks.2.0": 2,
}


@pytest.fixture
def recorded(tiny_path):
    """A model that shares halves, and the sizes of the batches that its layers get."""
    sd, sizes = minisd.load(tiny_path), {}
    share_halves(sd.unet)
    for name in SIZES:
        sd.unet.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: sizes.update({name: len(inputs[0])})
        )
    return sd, sizes


def test_equal_halves_are_computed_once(recorded, tiny):
    """Between the first convolution and the first cross-attention one image is computed.

    Observers of the whole network and of the cross-attention get both. The result differs by
    float32 rounding, since convolutions of one image and of two may sum in another order.
    """
    sd, sizes = recorded
    with torch.inference_mode():
        shared, plain = sd.unet(*guided_batch(sd)), tiny.unet(*guided_batch(sd))
    assert sizes == SIZES
    assert (shared - plain).abs().max() <= 1e-5 * plain.abs().max()


@pytest.mark.parametrize("difference", ["x", "t", "more pictures", "one picture, no guidance"])
def test_other_batches_are_computed_as_they_are(recorded, tiny, difference):
    sd, sizes = recorded
    x, t, context = guided_batch(sd)
    if difference == "x":
        x[1, 0, 0, 0] += 1
    elif difference == "t":
        t[1] += 1
    elif difference == "more pictures":
        x, t, context = x.repeat(2, 1, 1, 1), t.repeat(2), context.repeat_interleave(2, dim=0)
    else:
        x, t, context = x[:1], t[:1], context[1:]
    with torch.inference_mode():
        assert torch.equal(sd.unet(x, t, context), tiny.unet(x, t, context))
    assert set(sizes.values()) == {len(x)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halves_of_a_packed_model(monkeypatch, tiny_path, dtype):
    """The same bits as without sharing, and activations stay in oneDNN's layout."""
    results, layouts = [], []
    for share in (share_halves, lambda unet: None):
        monkeypatch.setattr("minisd.fast.packed.share_halves", share)
        sd = minisd.load(tiny_path, dtype=dtype)
        fast.pack(sd)
        sd.unet.input_blocks[1].register_forward_hook(
            lambda _, inputs, output: layouts.append((len(inputs[0]), output.stride()))
        )
        with torch.inference_mode():
            results.append(sd.unet(*guided_batch(sd)))
    assert torch.equal(*results)
    (shared_size, strides), (plain_size, plain_strides) = layouts
    assert (shared_size, plain_size) == (1, 2) and strides == plain_strides
    assert strides[1] == 1  # channels last


def test_a_guided_run_of_a_packed_model_is_observed_whole(tiny_path):
    """x_in, as a hook on the UNet sees it, is the whole batch of both halves at each call."""
    sd, shapes = minisd.load(tiny_path), []
    fast.pack(sd)
    sd.unet.register_forward_hook(
        lambda _, inputs, eps: shapes.append((*inputs[0].shape, len(eps)))
    )
    minisd.img2img(sd, "fire", PICTURE, steps=4, strength=0.5, seed=1)
    assert shapes == [(2, 4, 8, 8, 2)] * 2


# ---- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_packed_weights_change_only_rounding(dtype, tolerance):
    """Sums run in another order: rounding, 1e-7 or 4e-3, grown by guidance over four steps."""
    settings = {"steps": 6, "strength": 0.7, "guidance": 4, "seed": 5}
    sd = minisd.load(dtype=dtype)
    before = minisd.img2img(sd, "fire", PICTURE, **settings).latent
    fast.pack(sd)
    after = minisd.img2img(sd, "fire", PICTURE, **settings).latent
    assert (after - before).norm() <= tolerance * before.norm()
    assert not any(type(m) in (torch.nn.Conv2d, torch.nn.Linear) for m in sd.unet.modules())


def test_packing_is_for_cpus(emoji, monkeypatch):
    monkeypatch.setattr(emoji, "device", torch.device("cuda"))
    with pytest.raises(ValueError, match="models on a CPU"):
        fast.pack(emoji)


@pytest.mark.slow
def test_compiled_unet_computes_the_same():
    """PyTorch's own operations run its graph, which is one graph without a break. The code that
    the compiler would generate is not tested here."""
    sd = minisd.load()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    inputs = x, torch.tensor([10.0, 900.0]), sd.text_states("fire").repeat(2, 1, 1)
    with torch.inference_mode():
        before = sd.unet(*inputs)
        fast.compile(sd, backend="eager", fullgraph=True)
        assert torch.allclose(sd.unet(*inputs), before, atol=1e-5)
        with Ledger(sd) as ledger:  # observers see the calls, and are not compiled
            sd.unet(*inputs)
        assert ledger.calls == 1


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep memory")
def test_kept_memory_is_not_fetched_anew():
    """Counts the pages of 4 kB that the system hands out for the same 64 MB, ten times over."""
    code = """
import resource, torch
from minisd.fast import keep_memory
{}
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):  # in up to three of these the heap is still too small
    torch.ones(1 << 24)
before = pages()
for _ in range(10):
    torch.ones(1 << 24)
print(pages() - before)
"""
    kept, plain = (
        int(subprocess.check_output([sys.executable, "-c", code.format(call)]))
        for call in ("keep_memory()", "")
    )
    assert kept < plain / 4


@pytest.mark.parametrize("plentiful", [False, True])
def test_tuning_a_large_model(monkeypatch, tiny_path, plentiful):
    """On a CPU it is packed, in float32 too. Memory is kept where there is enough of it."""
    kept = []
    monkeypatch.setattr(tuned, "is_plentiful", lambda: plentiful)
    monkeypatch.setattr(tuned, "keep_memory", lambda: kept.append(True))
    sd = minisd.load(tiny_path)
    sd.native_size = 256
    fast.tune(sd)
    assert type(sd.unet.out[2]).__name__ == "PackedConv2d"
    assert kept == [True] * plentiful


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MemTotal: 64000000 kB\nMemAvailable:    9000000 kB\n", True),
        ("MemTotal: 64000000 kB\nMemAvailable:    7000000 kB\n", False),
        ("MemTotal: 64000000 kB\n", False),
        ("MemAvailable: many kB\n", False),
        (None, False),  # no such file
    ],
)
def test_plentiful_memory(monkeypatch, text, expected):
    def read_text(path):
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(memory.Path, "read_text", read_text)
    assert memory.is_plentiful() is expected
