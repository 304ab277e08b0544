"""Exact mode: order-free sums, functions of basic operations only, and pinned SHA-256."""

import json
import math
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import minisd
from minisd.cli.main import main
from minisd.exact_mode import InexactError, exact, is_exact, same_arithmetic
from minisd.exact_mode import functions as f
from minisd.exact_mode.layers import Layers
from minisd.exact_mode.whole_numbers import exact_matmul, exact_sum, to_whole
from minisd.files import sha256
from minisd.proof.record import read_record
from minisd.recipes.metadata import read_chunks
from minisd.sweeps.lockstep import lockstep

from .exact_pins import PINS, box, cases, computed, draw, picture
from .small_model import small_model

PINNED = json.loads(PINS.read_text())
# Instruction sets below this machine's own: no vector instructions at all, and AVX2.
LOWER = {
    "none": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE",
             "DNNL_MAX_CPU_ISA": "SSE41"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"},
}  # fmt: skip


@pytest.fixture(scope="module")
def small():
    return small_model()


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- sums ----------------------------------------------------------------------------------------


def test_a_sum_does_not_depend_on_the_order():
    x = random(1, 5000) * 3 ** random(1, 5000, seed=2)
    orders = [torch.randperm(5000, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    assert len({exact_sum(x[:, order], 1).item() for order in orders}) == 1
    assert len({x[0, order].sum().item() for order in orders}) > 1  # float32 does
    total = math.fsum(x[0].tolist())  # correctly rounded
    # 40 bits for each of 5000 terms: half a unit off each, the unit 2^-40 of the largest.
    assert abs(exact_sum(x, 1).item() - total) <= 5000 * 2.0**-41 * x.abs().max() * 2


def test_a_product_does_not_depend_on_the_order():
    a, b = random(7, 300), random(300, 5, seed=2)
    orders = [torch.randperm(300, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    results = [exact_matmul(a[:, order], b[order]) for order in orders]
    assert all(torch.equal(result, results[0]) for result in results)
    # 22 bits for each number: the error of a sum of 300 products is far below float32's 24 bits.
    assert (results[0] - a.double() @ b.double()).abs().max() < 300 * 2.0**-21
    assert any(not torch.equal(a[:, order] @ b[order], a @ b) for order in orders)


def test_whole_numbers_and_their_unit():
    x = torch.tensor([[3.0, -0.3, 0.0], [0.0, 0.0, 0.0], [1.0, 0.5, 2.0**-30]])
    numbers, unit = to_whole(x, 10, 1)
    assert torch.equal(numbers, numbers.round()) and numbers.abs().max() <= 2**10
    assert torch.equal(torch.frexp(unit)[0], torch.full((3, 1), 0.5, dtype=torch.float64))
    # Half a unit, and the unit is 2^-9 of the power of two below the largest.
    assert ((numbers * unit - x).abs() <= x.abs().amax(1, keepdim=True) * 2.0**-10).all()


# ---- functions -----------------------------------------------------------------------------------

SPAN = torch.cat([torch.linspace(-30, 30, 20001), torch.tensor([0.0, 1e-20, -1e-20])]).double()
NORMAL = torch.tensor([math.erfc(-x / 3 / 2**0.5) / 2 for x in SPAN.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("name, x, expected", [
    ("exp", SPAN, SPAN.exp()),
    ("log", SPAN.exp(), SPAN),
    ("sigmoid", SPAN, SPAN.sigmoid()),
    ("normal_share", SPAN / 3, NORMAL),
])  # fmt: skip
def test_functions(name, x, expected):
    """Beside the library's float64: relative to the value, or to 1 if that is more (log)."""
    error = (getattr(f, name)(x) - expected).abs() / expected.abs().clamp(min=1e-300)
    limit = 1e-9 if name != "log" else 1e-9 / expected.abs().clamp(1e-300, 1)
    assert (error <= limit)[expected != 0].all(), error.max()


def test_sin_and_cos():
    x = torch.linspace(-1000, 1000, 40001).double()
    for mine, library in zip(f.sin_and_cos(x), (x.sin(), x.cos()), strict=True):
        assert (mine - library).abs().max() < 1e-9


def test_exp_at_the_ends():
    x = torch.tensor([-math.inf, -1000.0, -700.0, 0.0, 1000.0]).double()
    assert f.exp(x).tolist()[:2] == [0, 0] and f.exp(x)[3] == 1 and f.exp(x).isfinite().all()


@pytest.mark.parametrize("shape", [(16,), (1, 4, 2, 2), (17,), (1, 4, 3, 5), (3, 4, 8, 8)])
def test_noise_is_that_of_torch(shape):
    """To 2e-6: the same uniform numbers in the same layout, other functions of them."""
    mine, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    noise = f.normal_noise(shape, mine)
    assert noise.dtype == torch.float32
    assert (noise - torch.randn(shape, generator=theirs)).abs().max() < 2e-6
    assert torch.equal(mine.get_state(), theirs.get_state())  # later draws agree too


# ---- the mode ------------------------------------------------------------------------------------


def test_layers_are_those_of_torch():
    """Each layer beside torch's in float64; 1e-5 of the largest is float32's rounding of sums."""
    x, y = random(2, 32, 8, 8), random(2, 10, 32)
    w, b = random(16, 32, 3, 3) / 17, random(16)
    calls = {
        "conv": lambda t: F.conv2d(t(x), t(w), t(b), padding=1),
        "conv, stride 2": lambda t: F.conv2d(t(x), t(w), t(b), stride=2),
        "conv, 1x1": lambda t: F.conv2d(t(x), t(w[:, :, :1, :1])),
        "linear": lambda t: F.linear(t(y), t(random(32, 32)), t(b.repeat(2))),
        "attention": lambda t: F.scaled_dot_product_attention(t(y), t(y), t(y)),
        "causal": lambda t: F.scaled_dot_product_attention(t(y), t(y), t(y), is_causal=True),
        "group norm": lambda t: F.group_norm(t(x), 8, t(random(32)), t(random(32)), 1e-6),
        "layer norm": lambda t: F.layer_norm(t(y), (32,), t(random(32)), t(random(32))),
        "silu": lambda t: F.silu(t(x)),
        "gelu": lambda t: F.gelu(t(x)),
        "pool": lambda t: F.avg_pool2d(t(x), 3, 1, 1, count_include_pad=False),
        "bilinear": lambda t: F.interpolate(t(x), (11, 5), mode="bilinear"),
        "softmax": lambda t: t(y).softmax(-1),
        "std": lambda t: t(x).std((1, 2, 3), keepdim=True),
        "quantile": lambda t: torch.quantile(t(y), 0.35, dim=1),
        "mean": lambda t: t(x).mean(dim=1),
        "pow": lambda t: t(x) ** 2 + t(y.abs().sum()) ** -0.5,
    }
    for name, call in calls.items():
        expected = call(torch.Tensor.double)
        with exact():
            result = call(lambda t: t)
        assert result.dtype == torch.float32, name
        assert (result - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_the_weights_are_read_again_when_they_change():
    linear = torch.nn.Linear(4, 3).requires_grad_(False)
    x = random(2, 4)
    with exact():
        before = linear(x)
        linear.weight.mul_(2)
        assert not torch.equal(linear(x), before)


@pytest.mark.parametrize("call", [
    torch.fft.fft,
    lambda x: x.cumsum(0),
    lambda x: x.tanh(),
    lambda x: x.clone().add_(x, alpha=0.1),
    lambda x: torch.add(x, x, out=x.clone()),
    lambda x: x**0.3,
    lambda x: F.linear(x.bfloat16()[None], x.bfloat16()[None]),
    lambda x: F.conv2d(x.view(1, 4, 2, 2), random(16)[:4].view(4, 1, 1, 1), groups=4),
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x: torch.randn(16),
    lambda x: torch.addcmul(x, x, x),
    lambda x: x.view(4, 4) @ x[:4],
])  # fmt: skip
def test_what_is_not_covered_raises(call):
    with exact(), pytest.raises(InexactError, match="exact mode"):
        call(random(16))


def test_whole_numbers_pass():
    with exact():
        x = torch.arange(10)
        assert (x.cumsum(0)[-1], x.sum().item(), (x @ x).item()) == (45, 45, 285)


def test_the_mode_ends_with_its_block():
    assert not is_exact()
    conv = torch.nn.Conv2d(4, 4, 3).requires_grad_(False)
    with exact():
        once = conv(random(1, 4, 8, 8))
        with exact():
            assert is_exact()
            assert torch.equal(conv(random(1, 4, 8, 8)), once)
        assert is_exact()
    assert not is_exact()
    random(3).tanh()


def test_threads_take_the_arithmetic_along():
    states = []
    with exact():
        for target in (is_exact, same_arithmetic(is_exact)):
            thread = threading.Thread(target=lambda target=target: states.append(target()))
            thread.start()
            thread.join()
    assert states[1] is True
    assert same_arithmetic(is_exact)() is False


# ---- pictures ------------------------------------------------------------------------------------


def test_every_sampler_is_pinned():
    assert PINNED["small"].keys() == cases().keys()
    assert {f"sampler {name}" for name in minisd.SAMPLERS} <= cases().keys()


@pytest.mark.parametrize("name", [
    "sampler k_lms", "batch of 3",
    pytest.param("all", marks=pytest.mark.slow),
])  # fmt: skip
def test_pins(name):
    names = list(cases()) if name == "all" else [name]
    assert computed(names) == {key: PINNED["small"][key] for key in names}


@pytest.mark.parametrize("instructions, threads, names", [
    ("none", "1", ["sampler dpmpp_2m_sde", "inpainting"]),
    pytest.param("AVX2", "2", [], marks=pytest.mark.slow),
    pytest.param("none", "3", [], marks=pytest.mark.slow),
])  # fmt: skip
def test_pins_on_lesser_processors(instructions, threads, names):
    """A process of its own: the libraries read these variables once, when they are loaded."""
    # Threads that wait without sleeping would slow down everything else on a busy machine.
    threading_settings = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    settings = os.environ | LOWER[instructions] | threading_settings
    done = subprocess.run(
        [sys.executable, "-m", "tests.exact_pins", *names], capture_output=True, text=True,
        check=True, env=settings, cwd=PINS.parent.parent.parent,
    )  # fmt: skip
    assert json.loads(done.stdout) == {key: PINNED["small"][key] for key in names or cases()}


@pytest.mark.slow
def test_the_weights_that_come_with_minisd():
    weights = sha256(minisd.load().path)
    if weights != PINNED["box"]["weights"]:
        pytest.fail("the weights have changed: run python -m tests.exact_pins --write")
    assert box() == PINNED["box"]


def test_an_image_does_not_depend_on_its_batch(small):
    settings = {"sampler": "k_euler_a", "steps": 2}
    batch = draw(small, settings | {"seed": [3, 1, 2, 5, 4]})
    for i, seed in enumerate(batch.seeds[:2]):
        single = draw(small, settings | {"seed": seed})
        assert torch.equal(single.latent[0], batch.latent[i])
        assert single.image.tobytes() == batch.images[i].tobytes()


def test_runs_in_lockstep_have_the_same_bits(small):
    def run_of(seed):
        return lambda network: minisd.txt2img(
            minisd.StableDiffusion(**(vars(small) | {"unet": network})), "fire", steps=2, seed=seed
        )

    with exact():
        results = lockstep(small.unet, [run_of(1), run_of(2)])
        single = minisd.txt2img(small, "fire", steps=2, seed=2)
    assert torch.equal(results[1].latent, single.latent)


def test_the_result_is_close_to_float32(small):
    """2e-5: the rounding of float32 through three steps; two kinds of CPU differ as much."""
    arguments = {"steps": 3, "seed": 4, "sampler": "k_euler_a", "guidance": 3}
    plain = minisd.txt2img(small, "fire", **arguments)
    with exact():
        result = minisd.txt2img(small, "fire", **arguments)
    assert 0 < (result.latent - plain.latent).abs().max() < 2e-5 * plain.latent.abs().max()


@pytest.mark.slow
def test_every_dialect_is_covered(small):
    """Other programs' rules: as close to float32 as their longer arithmetic allows."""
    for dialect in minisd.DIALECTS:
        settings = {"dialect": dialect, "sampler": "ddim", "steps": 4, "seed": 5, "guidance": 3.0}
        recipe = minisd.Recipe("a big fire", image="drawing.png", strength=0.5, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = recipe.draw(small, picture(64, 64))
            with exact():
                result = recipe.draw(small, picture(64, 64))
        assert (result.latent - plain.latent).abs().max() < 1e-3, dialect


def test_layers_do_not_change_their_arguments():
    x, layers = random(2, 32, 4, 4).double(), Layers()
    before = x.clone()
    layers.silu(x), layers.gelu(x), layers.group_norm(x, 8), f.log(x.abs()), f.exp(x)
    layers.conv2d(x, random(3, 32, 1, 1).double()), f.sin_and_cos(x)
    assert torch.equal(x, before)


# ---- the command line ----------------------------------------------------------------------------


def test_the_switch(tmp_path: Path, capsys):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    words = ["img2img", "fire", "-I", str(tmp_path / "red.png"), "-s", "1", "-f", "1", "-S", "3"]
    assert main([*words, "-o", str(tmp_path / "out"), "--exact"]) == 0
    (picture,) = (tmp_path / "out").glob("*.png")
    record = read_record(read_chunks(picture))
    assert record["exact"] is True and record["dtype"] == "float32"
    with exact():
        redrawn = minisd.read_recipe(picture).draw(minisd.load())
    assert redrawn.seed == 3
    assert Image.open(picture).tobytes() == redrawn.image.tobytes()
    assert main([*words, "--exact", "--dtype", "bfloat16", "-o", str(tmp_path / "out")]) == 2
    assert "--exact is for --dtype float32" in capsys.readouterr().err
