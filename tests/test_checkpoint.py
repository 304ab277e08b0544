"""Checkpoints as people have them: all forms of the same weights give one model, bit for bit."""

import functools
import importlib
import json
import struct
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import minisd
from minisd.checkpoint import POSITION_IDS, PREFIXES, SCHEDULE_BUFFERS, architecture
from minisd.checkpoint.architecture import build
from minisd.checkpoint.load import by_model
from minisd.checkpoint.seeded import sd1_shapes, seeded_tensor, seeded_tensors, tiny_shapes
from minisd.checkpoint.tensors import StoredTensor, contiguous_stride, read_tensors

from .conftest import manifest
from .hostile_files import members, micro, safetensors_bytes, saved, write

Weights = dict[str, torch.Tensor]
# The module: the attribute `minisd.checkpoint.load` is the function.
load_module = importlib.import_module("minisd.checkpoint.load")


def assert_holds(
    sd: minisd.StableDiffusion, weights: Weights, dtype: torch.dtype = torch.float32
) -> None:
    """The models have exactly these weights, in `dtype`, and the text encoder in float32."""
    for part, prefix in PREFIXES.items():
        expected = {
            key.removeprefix(prefix): value
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        state = getattr(sd, part).state_dict()
        assert state.keys() == expected.keys()
        part_dtype = torch.float32 if part == "text_encoder" else dtype
        for key, value in state.items():
            assert value.dtype == part_dtype, prefix + key
            assert torch.equal(value, expected[key].to(part_dtype)), prefix + key
            assert value.device.type == "cpu" and not value.requires_grad


# ---- forms of file -------------------------------------------------------------------------------


def lightning(weights: Weights) -> dict[str, Any]:
    """What the original trainer wrote. It names a class that is missing where the file is read."""
    return {
        "epoch": 6,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": weights,
        "callbacks": {
            sys.modules["pytorch_lightning.callbacks.model_checkpoint"].ModelCheckpoint: {
                "monitor": "val/loss_simple_ema",
                "best_model_score": torch.tensor(0.1383),
                "best_model_path": "epoch=000006.ckpt",
                "current_score": None,
                "dirpath": Path("checkpoints"),
            }
        },
        "optimizer_states": [
            {"state": {0: {"step": 9, "exp_avg": torch.ones(7)}}, "param_groups": [{"lr": 1e-4}]}
        ],
        "lr_schedulers": [{"last_epoch": 470000, "_last_lr": [1e-4], "lr_lambdas": [None]}],
        "hparams": set("abc"),
    }


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lightning is installed until the returned function is called."""
    names = ["pytorch_lightning", "pytorch_lightning.callbacks"]
    names.append("pytorch_lightning.callbacks.model_checkpoint")
    modules = {name: types.ModuleType(name) for name in names}
    modules[names[-1]].ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": names[-1]})
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return lambda: [monkeypatch.delitem(sys.modules, name) for name in names]


def ordered(weights: Weights) -> OrderedDict:
    """As nn.Module.state_dict() gives it, with an attribute for the modules' versions."""
    state = OrderedDict(weights)
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


def sliced(weights: Weights) -> Weights:
    """All tensors in one storage, one after the other, as some mergers write them."""
    flat = torch.cat([value.flatten() for value in weights.values()])
    pieces = flat.split([value.numel() for value in weights.values()])
    return {key: piece.view(value.shape) for (key, value), piece in zip(weights.items(), pieces)}


def transposed(weights: Weights) -> Weights:
    """The same numbers in another order on disk."""

    def stored(value: torch.Tensor) -> torch.Tensor:
        if value.ndim == 2:
            return value.t().contiguous().t()
        if value.ndim == 4:
            return value.to(memory_format=torch.channels_last)
        return value

    return {key: stored(value) for key, value in weights.items()}


def with_buffers(weights: Weights) -> Weights:
    return {
        **{key: seeded_tensor(key, (1000,)) for key in ("betas", "alphas_cumprod")},
        **weights,
    }


def without_text_model(weights: Weights) -> Weights:
    return {
        key.replace("transformer.text_model.", "transformer."): value
        for key, value in weights.items()
    }


def parameters(weights: Weights) -> Weights:
    return {key: torch.nn.Parameter(value) for key, value in weights.items()}


FORMS: dict[str, Callable[[Weights], bytes]] = {
    "safetensors": safetensors_bytes,
    "Lightning": lambda weights: saved(lightning(weights)),
    "Lightning, before torch 1.6": lambda weights: saved(lightning(weights), legacy=True),
    "bare": saved,
    "bare, before torch 1.6": lambda weights: saved(weights, legacy=True),
    "only state_dict": lambda weights: saved({"state_dict": weights}),
    **{
        f"pickle protocol {n}": lambda weights, n=n: saved({"state_dict": weights}, protocol=n)
        for n in (2, 3, 4, 5)
    },
    "OrderedDict": lambda weights: saved(ordered(weights)),
    "OrderedDict, before torch 1.6": lambda weights: saved(
        {"state_dict": ordered(weights)}, legacy=True
    ),
    "parameters": lambda weights: saved({"state_dict": parameters(weights)}),
    "parameters, before torch 1.6": lambda weights: saved(
        {"state_dict": parameters(weights)}, legacy=True
    ),
    "one storage": lambda weights: saved(sliced(weights)),
    "one storage, before torch 1.6": lambda weights: saved(sliced(weights), legacy=True),
    "transposed": lambda weights: saved(transposed(weights)),
    "transposed, before torch 1.6": lambda weights: saved(transposed(weights), legacy=True),
    "schedule": lambda weights: saved(with_buffers(weights)),
    "schedule, safetensors": lambda weights: safetensors_bytes(with_buffers(weights)),
    "position ids": lambda weights: saved({**weights, POSITION_IDS: torch.arange(77)[None]}),
    "position ids as floats": lambda weights: safetensors_bytes(
        {**weights, POSITION_IDS: torch.arange(77.0)[None]}
    ),
    "position ids as halves": lambda weights: saved(
        {**weights, POSITION_IDS: torch.arange(77)[None].half()}
    ),
    "text encoder of newer transformers": lambda weights: saved(without_text_model(weights)),
    "text encoder of newer transformers, position ids": lambda weights: safetensors_bytes(
        without_text_model({**weights, POSITION_IDS: torch.arange(77)[None]})
    ),
    "metadata of others": lambda weights: safetensors_bytes(
        weights, metadata={"format": "pt", "modelspec.title": "x"}
    ),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms(form: Callable[[Weights], bytes], trainer: Callable[[], None], tmp_path: Path):
    # The file's content decides how it is read, not its name.
    path = write(tmp_path / "model.ckpt", form(micro()))
    trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_holds(minisd.load(path), micro())


@pytest.mark.parametrize("form", ["safetensors", "bare", "bare, before torch 1.6", "transposed"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(stored: torch.dtype, form: str, tmp_path: Path):
    """The stored numbers are loaded, and rounded once, to the dtype asked for."""
    weights = {key: value.to(stored) for key, value in micro().items()}
    path = write(tmp_path / "model.ckpt", FORMS[form](weights))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert_holds(minisd.load(path, dtype=dtype), weights, dtype)


def test_mixed_dtypes(tmp_path: Path):
    """Mergers leave norms in float32 and the rest in half precision."""
    weights = {key: value if value.ndim == 1 else value.half() for key, value in micro().items()}
    assert_holds(minisd.load(write(tmp_path / "model.ckpt", saved(weights))), weights)


def test_tiny(tiny: minisd.StableDiffusion):
    assert_holds(tiny, seeded_tensors(tiny_shapes()))
    assert (tiny.multiple, tiny.native_size, tiny.name) == (64, 64, "tiny")


def test_loading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    minisd.load()
    assert torch.equal(torch.get_rng_state(), state)


def test_bundled_weights_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a checkout weights/ is beside minisd/, in an installed package it is inside."""
    assert load_module.bundled_weights().name == "emoji.safetensors"
    monkeypatch.setattr(load_module, "__file__", str(tmp_path / "minisd/checkpoint/load.py"))
    with pytest.raises(minisd.CheckpointError, match="weights that come with minisd are missing"):
        minisd.load()
    for folder in ("weights", "minisd/weights"):
        (tmp_path / folder).mkdir(parents=True)
        path = write(tmp_path / folder / "emoji.safetensors", safetensors_bytes(micro()))
        assert load_module.bundled_weights() == path
        assert_holds(minisd.load(), micro())


def test_every_length_of_header(tmp_path: Path):
    """The header's length comes first. For one length in 32 its first byte is that of a pickle."""
    for n in range(0, 256, 8):
        data = safetensors_bytes({"a": torch.ones(1)}, metadata={"a": "x" * n})
        tensors, metadata = read_tensors(write(tmp_path / "model.safetensors", data))
        assert list(tensors) == ["a"] and metadata == {"a": "x" * n}


def test_more_than_4_gigabytes(tmp_path: Path):
    """Training checkpoints have 7.7 GB, with 64-bit offsets. Most of this file is a hole."""
    hole, path = 4500 << 20, tmp_path / "model.ckpt"
    entries = []
    pickled, *rest = members(saved({"state_dict": micro()})).items()
    max32, max16 = 0xFFFFFFFF, 0xFFFF  # "see the 64-bit field instead"
    with open(path, "wb") as file:
        for name, data in (pickled, ("archive/hole", b""), *rest):
            start, size = file.tell(), hole if name == "archive/hole" else len(data)
            fixed = struct.pack("<HHHHHLLL", 45, 0x800, 0, 0, 0, 0, max32, max32)
            wide = struct.pack("<HHQQ", 1, 16, size, size)
            lengths = struct.pack("<HH", len(name), len(wide))
            file.write(b"PK\3\4" + fixed + lengths + name.encode() + wide + data)
            file.seek(start + 30 + len(name) + len(wide) + size)
            wide = struct.pack("<HHQQQ", 1, 24, size, size, start)
            lengths = struct.pack("<HHHHHLL", len(name), len(wide), 0, 0, 0, 0, max32)
            version = struct.pack("<H", 45)
            entries.append(b"PK\1\2" + version + fixed + lengths + name.encode() + wide)
        directory, n = file.tell(), len(entries)
        file.write(b"".join(entries))
        end = file.tell()
        numbers = (44, 45, 45, 0, 0, n, n, end - directory, directory)
        file.write(b"PK\6\6" + struct.pack("<QHHLLQQQQ", *numbers))
        file.write(b"PK\6\7" + struct.pack("<LQL", 0, end, 1))
        file.write(b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, max16, max16, max32, max32, 0))
    assert path.stat().st_size > 1 << 32
    assert_holds(minisd.load(path), micro())


# ---- other contents of a file --------------------------------------------------------------------


def test_training_average(tmp_path: Path):
    """It is neither used nor read, and a warning says so."""
    average = {f"model_ema.diffusion_model{i}": torch.full((3,), torch.nan) for i in range(5)}
    path = write(tmp_path / "model.ckpt", saved({"state_dict": {**micro(), **average}}))
    with pytest.warns(UserWarning, match=r"ignored 5 tensors model_ema\.\*"):
        assert_holds(minisd.load(path), micro())


def test_another_schedule(tmp_path: Path):
    path = write(
        tmp_path / "model.ckpt", saved({**micro(), "alphas_cumprod": torch.linspace(1, 0, 1000)})
    )
    with pytest.warns(UserWarning, match="noise schedule is not SD 1.x's"):
        minisd.load(path)


def test_facts(tmp_path: Path):
    """What names and shapes do not show, from the metadata."""
    rgb = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9], [1.0, 1.1, 1.2]]
    facts = {
        "unet_heads": 4,
        "text_heads": 2,
        "native_size": 64,
        "latent_rgb": rgb,
        "latent_rgb_bias": [0.5, 0, -0.5],
    }
    facts |= {"name": "micro", "licence": "CC0"}
    data = safetensors_bytes(micro(), metadata={"minisd": json.dumps(facts)})
    sd = minisd.load(write(tmp_path / "a.safetensors", data))
    assert sd.unet.input_blocks[1][1].transformer_blocks[0].attn2.heads == 4
    assert sd.text_encoder.encoder.layers[0].self_attn.heads == 2
    assert (sd.native_size, sd.name, sd.licence) == (64, "micro", "CC0")
    assert sd.latent_rgb == rgb and sd.latent_rgb_bias == [0.5, 0, -0.5]
    sd = minisd.load(write(tmp_path / "b.safetensors", safetensors_bytes(micro())))
    assert sd.unet.input_blocks[1][1].transformer_blocks[0].attn2.heads == 8
    assert sd.text_encoder.encoder.layers[0].self_attn.heads == 12
    assert (sd.native_size, sd.name, sd.licence) == (512, "SD 1.x", "")


# ---- the 1,143 entries of SD 1.x -----------------------------------------------------------------


def record(shape: tuple[int, ...]) -> StoredTensor:
    """A stored tensor without a file."""
    return StoredTensor("F32", shape, contiguous_stride(shape), 0)


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model is built once for each size, not 3,000 times."""

    def cached(kind: type[torch.nn.Module]) -> Callable[..., torch.nn.Module]:
        @functools.cache
        def make(*args: Any, **kwargs: Any) -> torch.nn.Module:
            model = kind(*args, **kwargs)
            state = model.state_dict()
            model.state_dict = lambda: state
            return model

        return make

    for name in ("UNet", "VAE", "TextEncoder"):
        monkeypatch.setattr(architecture, name, cached(getattr(architecture, name)))


def build_from(parts: dict[str, dict[str, StoredTensor]]) -> None:
    build({part: {name: t.shape for name, t in tensors.items()} for part, tensors in parts.items()})


def problem(tensors: dict[str, StoredTensor]) -> str:
    """The error message, or nothing."""
    try:
        build_from(by_model(tensors))
    except minisd.CheckpointError as error:
        return str(error)
    return ""


def sd1() -> dict[str, StoredTensor]:
    return {key: record(shape) for key, shape in manifest().items()}


def wider(tensor: StoredTensor) -> StoredTensor:
    return record((*tensor.shape[:-1], tensor.shape[-1] + 1))


LEFTOVERS = [*SCHEDULE_BUFFERS, POSITION_IDS]  # a file may have them or not


def test_names_and_shapes_are_those_of_the_original():
    """minisd's modules give the very entries that the original implementation wrote down."""
    assert sd1_shapes() == manifest()


def test_all_entries_are_known(remembered: None):
    tensors = sd1()
    assert len(tensors) == 1143 and set(LEFTOVERS) < tensors.keys() and problem(tensors) == ""


@pytest.mark.parametrize(("part", "count"), [("unet", 686), ("vae", 248), ("text_encoder", 196)])
@pytest.mark.parametrize("stride", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_each_weight_counts(part: str, count: int, stride: int, remembered: None):
    """A missing, an additional and a misshapen weight are an error that names them alone.

    Each weight is in turn missing and misshapen, and gets a companion that does not belong there.
    In the quick run this checks one weight in 16.
    """
    parts, prefix = by_model(sd1()), PREFIXES[part]
    weights = parts[part]
    names = list(weights)
    assert len(names) == count
    for i in range(0, count, stride):
        absent, wide, doubled = names[i], names[i - 1], names[i - 2]
        right = weights[wide]
        changed = weights | {wide: wider(right), f"{doubled}_more": weights[doubled]}
        del changed[absent]
        with pytest.raises(minisd.CheckpointError) as error:
            build_from(parts | {part: changed})
        shapes = f"{wider(right).shape}, should be {right.shape}"
        assert str(error.value).split("; ") == [
            f"missing {prefix}{absent}",
            f"unknown {prefix}{doubled}_more",
            f"wrong shape: {prefix}{wide} is {shapes}",
        ]


@pytest.mark.parametrize("key", LEFTOVERS)
def test_leftovers(key: str, remembered: None):
    """The training schedule and the position ids may be missing, but not have other shapes."""
    tensors = sd1()
    right = tensors.pop(key)
    assert problem(tensors) == ""
    wrong = wider(right)
    message = f"wrong shape: {key} is {wrong.shape}, should be {right.shape}"
    assert problem({**tensors, key: wrong}) == message
    longer = f"{key}_more"
    message = problem({**tensors, longer: right})
    assert message in (f"unknown {longer}", f"tensors that SD 1.x does not have: {longer}")
