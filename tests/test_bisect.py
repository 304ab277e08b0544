"""`minisd bisect` and minisd/proof/bisect.py: the module with an injected fault is named."""

import copy
import dataclasses
import random
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from minisd.cli.commands.bisect import words_of
from minisd.cli.main import main
from minisd.observe.diff import compare, number, report
from minisd.observe.trace import Trace
from minisd.proof.bisect import Configuration, bisect, first_step_apart, growth, module_pairs
from minisd.recipes import Recipe

from .small_model import small_model

RECIPE = Recipe("fire", steps=2, seed=1, guidance=2.0, sampler="k_euler")


@pytest.fixture(scope="module")
def small():
    return small_model()


class Faults:
    """Faults of all kinds, each in one module of the UNet, the autoencoder or the text encoder."""

    def __init__(self, sd, rng: random.Random):
        self.names = {}
        for part in ("unet", "vae.decoder", "text_encoder"):
            root = sd
            for word in part.split("."):
                root = getattr(root, word)
            self.names[part] = [
                (f"{part}.{path}", module) for path, module in root.named_modules() if path
            ]
        self.rng = rng

    def choose(self, kinds, parts=("unet", "vae.decoder", "text_encoder")):
        modules = [m for part in parts for m in self.names[part] if isinstance(m[1], kinds)]
        return self.rng.choice(modules)

    def weight(self):
        name, module = self.choose((nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm))
        flat = module.weight.view(-1)
        flat[self.rng.randrange(len(flat))] += 0.01
        return name

    def bias(self):
        name, module = self.choose((nn.Conv2d, nn.GroupNorm, nn.LayerNorm))
        module.bias.mul_(1.001)
        return name

    def eps(self):
        name, module = self.choose((nn.GroupNorm, nn.LayerNorm))
        module.eps = 1e-6 if module.eps == 1e-5 else 1e-5
        return name

    def padding(self):
        name, module = self.choose((nn.Conv2d,), ("unet", "vae.decoder"))
        while module.padding == (0, 0):
            name, module = self.choose((nn.Conv2d,), ("unet", "vae.decoder"))
        module.padding_mode = "replicate"
        module._reversed_padding_repeated_twice = [1, 1, 1, 1]
        return name

    def dtype(self):
        name, module = self.choose((nn.Conv2d, nn.Linear))
        module.weight.copy_(module.weight.bfloat16().float())
        return name

    def order(self):
        """Activation before the norm: the Sequential is named, since its parts agree."""
        blocks = [
            (name, module)
            for part in ("unet",)
            for name, module in self.names[part]
            if name.endswith(("in_layers", "out_layers"))
        ]
        name, module = self.rng.choice(blocks)
        forward = module.forward

        def in_another_order(x):
            norm, silu, *rest = module
            x = norm(silu(x))
            for layer in rest:
                x = layer(x)
            return x

        assert forward is not None
        module.forward = in_another_order
        return name


KINDS = ("weight", "bias", "eps", "padding", "dtype", "order")


def injected(sd, seed: int):
    """A copy of the model with a fault, and the name of the module that has it."""
    rng = random.Random(seed)
    faulty = copy.deepcopy(sd)
    name = getattr(Faults(faulty, rng), KINDS[seed % len(KINDS)])()
    return faulty, name


@pytest.mark.parametrize("seeds", [
    (1, 2, 5), pytest.param(range(24), marks=pytest.mark.slow),
], ids=["3 faults", "24 faults"])  # fmt: skip
def test_injected_faults_are_named(small, seeds):
    for seed in seeds:
        faulty, name = injected(small, seed)
        parting = bisect(
            RECIPE, Configuration(small, exact=True), Configuration(faulty, exact=True)
        )
        assert parting.first is not None and parting.first.path == name, (seed, name, parting)


def test_tf32_is_that_of_products_and_of_convolutions(small):
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for value in (True, False):
        with Configuration(small, flags={"tf32": value}).applied():
            assert [switch.allow_tf32 for switch in switches] == [value, value]
        assert [switch.allow_tf32 for switch in switches] == before


def test_a_configuration_does_not_part_from_itself(small):
    a = Configuration(small, exact=True)
    parting = bisect(RECIPE, a, Configuration(small, exact=True, threads=None))
    assert parting.first is None and max(entry.distance for entry in parting.compared) == 0
    assert {entry.place for entry in parting.compared} == {
        "the prompt", "step 1", "step 2", "the decoder",
    }  # fmt: skip
    assert len(parting.compared) > len(module_pairs(small, small)) / 2


def test_float32_and_exact_mode_differ_by_rounding_only(small):
    parting = bisect(RECIPE, Configuration(small), Configuration(small, exact=True))
    assert parting.first is None
    assert 0 < max(entry.distance for entry in parting.compared) < parting.tolerance


def test_a_change_in_a_later_step_is_named_with_its_step(small):
    faulty = copy.deepcopy(small)
    conv = faulty.unet.out[2]
    forward, calls = conv.forward, []

    def late(x):
        calls.append(x)
        # It is called for itself, and for each module around it: out and the UNet.
        return forward(x) * (1 if len(calls) <= 3 else 1.001)

    conv.forward = late
    parting = bisect(RECIPE, Configuration(small, exact=True), Configuration(faulty, exact=True))
    assert (parting.first.place, parting.first.path) == ("step 2", "unet.out.2")


def test_growth_from_module_to_module(small):
    faulty = copy.deepcopy(small)
    faulty.unet.middle_block[0].in_layers[2].weight.mul_(1.01)
    grown = growth(RECIPE, Configuration(small, exact=True), Configuration(faulty, exact=True))
    start = grown.paths.index("unet.middle_block.0.in_layers.2")
    assert all(value == 0 for value in grown.distances[:start])
    assert grown.distances[start] > 0
    assert grown.distances[-1] > 0


def test_the_first_step_of_two_traces(small):
    traces = []
    for sigma in (0.0, 0.5):
        with Trace(small) as trace:
            RECIPE.draw(small, observe=trace)
        trace.steps[1] = type(trace.steps[1])(
            **{**vars(trace.steps[1]), "x": trace.steps[1].x + sigma}
        )
        traces.append(trace)
    assert first_step_apart(*traces, tolerance=1e-6) == 2
    assert first_step_apart(traces[0], traces[0], tolerance=0) is None


def test_models_with_other_modules_are_refused(small):
    other = copy.deepcopy(small)
    del other.unet.input_blocks[3]
    with pytest.raises(ValueError, match=r"only one of the models has unet.input_blocks.3"):
        bisect(RECIPE, Configuration(small), Configuration(other))


# ---- the commands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, settings",
    [
        ("same", {}),
        ("exact", {"exact": True}),
        ("dtype=bfloat16,threads=2", {"dtype": "bfloat16", "threads": 2}),
        ("mkldnn=off,model=a.ckpt", {"mkldnn": False, "model": "a.ckpt"}),
        ("dump.safetensors", Path("dump.safetensors")),
    ],
)
def test_words_of_a_configuration(text, settings):
    assert words_of(text, Namespace(dtype="float32")) == settings


@pytest.mark.parametrize("text", ["", "fast", "threads=0", "threads=-1", "dtype=int8", "exact=1"])
def test_other_words_are_refused(text, capsys):
    assert main(["bisect", text, "same", "fire"]) == 2
    assert "is not a setting; choose from dtype=" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    words = ["fire", "-s", "1", "-S", "1", "-C", "1"]
    figure = tmp_path / "growth.png"
    assert main(["bisect", "same", "exact", *words]) == 0
    assert "they do not part by more than 2e-05" in capsys.readouterr().out
    assert main(["bisect", "same", "dtype=bfloat16", *words, "--to", str(figure)]) == 1
    assert "they part at step 1 in unet." in capsys.readouterr().out
    assert Image.open(figure).size[0] > 800
    traces = ["--traces", str(tmp_path), "-o", str(tmp_path)]
    assert main(["strip", *words[:-2], "-C", "1", *traces, "-A", "k_euler,ddim"]) == 0
    dumps = sorted(tmp_path.glob("*.safetensors"))
    capsys.readouterr()
    assert main(["bisect", "same", str(dumps[1]), *words, "-A", "k_euler"]) == 0
    assert main(["diff", str(dumps[1]), str(dumps[1]), "-o", str(tmp_path)]) == 0
    assert "they are bit-equal" in capsys.readouterr().out


def test_diff_names_settings_and_environment_and_shows_small_numbers(small):
    with Trace(small, {"steps": 2, "environment": {"torch": "2.10", "threads": 1}}) as a:
        RECIPE.draw(small, observe=a)
    b = copy.deepcopy(a)
    b.settings = {"steps": 2, "environment": {"torch": "2.13", "threads": 1}, "seed": 4}
    assert compare(a, b).is_equal
    assert "they are bit-equal" in report(compare(a, b), a, b, ("A", "B"))
    b.latent = b.latent + 9e-6
    b.steps = [dataclasses.replace(step, x=step.x + 9e-6) for step in b.steps]
    text = report(compare(a, b), a, b, ("A", "B"))
    assert "they differ in seed: not recorded and 4" in text
    assert "they differ in environment, torch: 2.10 and 2.13" in text
    assert "threads" not in text and "they do not separate" in text
    assert re.search(r"final latents are [89]\.\de-06 apart", text)
    assert [number(d) for d in (0, 9e-6, 0.0005, 1.2)] == ["0", "9.0e-06", "0.0005", "1.2000"]
