"""Checkpoints that people have: each form of the same weights gives the same model, to the bit."""

import functools
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
from minisd import checkpoint
from minisd.checkpoint import POSITION_IDS, PREFIXES, SCHEDULE_BUFFERS
from minisd.files.tensors import Tensor, contiguous, read_tensors

from .conftest import manifest, seeded, tiny_manifest
from .hostile_files import members, micro, safetensors_bytes, saved, write

Weights = dict[str, torch.Tensor]


def assert_holds(
    sd: minisd.StableDiffusion, weights: Weights, dtype: torch.dtype = torch.float32
) -> None:
    """The model has exactly these, in `dtype`, and the text encoder in float32."""
    for part, prefix in PREFIXES.items():
        wanted = {
            key.removeprefix(prefix): value
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        found = getattr(sd, part).state_dict()
        assert found.keys() == wanted.keys()
        kind = torch.float32 if part == "text_encoder" else dtype
        for key, value in found.items():
            assert value.dtype == kind and torch.equal(value, wanted[key].to(kind)), prefix + key
            assert value.device.type == "cpu" and not value.requires_grad


# ---- forms of file -------------------------------------------------------------------------------


def lightning(weights: Weights) -> dict[str, Any]:
    """What the originals' trainer wrote. The class it names isn't there where the file is read."""
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
    found = [
        types.ModuleType(each) for each in ("pytorch_lightning", "pytorch_lightning.callbacks")
    ]
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for each in (*found, module):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    return lambda: [monkeypatch.delitem(sys.modules, each.__name__) for each in (*found, module)]


def ordered(weights: Weights) -> OrderedDict:
    """As nn.Module.state_dict() gives it, with an attribute for the modules' versions."""
    found = OrderedDict(weights)
    found._metadata = OrderedDict({"": {"version": 1}})
    return found


def sliced(weights: Weights) -> Weights:
    """All in one storage, one behind the other, as some mergers leave them."""
    flat = torch.cat([value.flatten() for value in weights.values()])
    pieces = flat.split([value.numel() for value in weights.values()])
    return {key: piece.view(value.shape) for (key, value), piece in zip(weights.items(), pieces)}


def transposed(weights: Weights) -> Weights:
    """The same numbers in another order on disk."""
    return {
        key: value.t().contiguous().t()
        if value.ndim == 2
        else value.to(memory_format=torch.channels_last)
        if value.ndim == 4
        else value
        for key, value in weights.items()
    }


def with_buffers(weights: Weights) -> Weights:
    return {
        **{key: seeded(key, (1000,)) for key in SCHEDULE_BUFFERS & {"betas", "alphas_cumprod"}},
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
    path = write(
        tmp_path / "model.ckpt", form(micro())
    )  # the name does not matter: the content tells
    trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_holds(minisd.load(path), micro())


@pytest.mark.parametrize("form", ["safetensors", "bare", "bare, before torch 1.6", "transposed"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(stored: torch.dtype, form: str, tmp_path: Path):
    """What is stored is what is loaded, rounded once: to the dtype asked for."""
    weights = {key: value.to(stored) for key, value in micro().items()}
    path = write(tmp_path / "model.ckpt", FORMS[form](weights))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert_holds(minisd.load(path, dtype=dtype), weights, dtype)


def test_mixed_dtypes(tmp_path: Path):
    """Mergers leave norms in float32 and the rest in half precision."""
    weights = {key: value if value.ndim == 1 else value.half() for key, value in micro().items()}
    assert_holds(minisd.load(write(tmp_path / "model.ckpt", saved(weights))), weights)


def test_tiny(tiny: minisd.StableDiffusion):
    assert_holds(tiny, {key: seeded(key, shape) for key, shape in tiny_manifest().items()})


def test_every_length_of_header(tmp_path: Path):
    """A header's length comes first, and one in 32 of them is the first byte of a pickle."""
    for n in range(0, 256, 8):
        path = write(
            tmp_path / "model.safetensors",
            safetensors_bytes({"a": torch.ones(1)}, metadata={"a": "x" * n}),
        )
        tensors, metadata = read_tensors(path)
        assert list(tensors) == ["a"] and metadata == {"a": "x" * n}


def test_more_than_4_gigabytes(tmp_path: Path):
    """Training checkpoints have 7.7, with places in 64 bits. Here most of it is a hole."""
    hole, path = 4500 << 20, tmp_path / "model.ckpt"
    entries = []
    pickled, *rest = members(saved({"state_dict": micro()})).items()
    with open(path, "wb") as file:
        for name, data in (pickled, ("archive/hole", b""), *rest):
            start, size = file.tell(), hole if name == "archive/hole" else len(data)
            wide = struct.pack("<HHQQ", 1, 16, size, size)
            common = struct.pack(
                "<HHHHHLLLHH", 45, 0x800, 0, 0, 0, 0, *[0xFFFFFFFF] * 2, len(name), len(wide)
            )
            file.write(b"PK\3\4" + common + name.encode() + wide + data)
            file.seek(start + 30 + len(name) + len(wide) + size)
            wide = struct.pack("<HHQQQ", 1, 24, size, size, start)
            common = struct.pack(
                "<HHHHHLLLHH", 45, 0x800, 0, 0, 0, 0, *[0xFFFFFFFF] * 2, len(name), len(wide)
            )
            common += struct.pack("<HHHLL", 0, 0, 0, 0, 0xFFFFFFFF)
            entries.append(b"PK\1\2" + struct.pack("<H", 45) + common + name.encode() + wide)
        directory, n = file.tell(), len(entries)
        file.write(b"".join(entries))
        end = file.tell()
        file.write(
            b"PK\6\6"
            + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, n, n, end - directory, directory)
        )
        file.write(b"PK\6\7" + struct.pack("<LQL", 0, end, 1))
        file.write(
            b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        )
    assert path.stat().st_size > 1 << 32
    assert_holds(minisd.load(path), micro())


# ---- what is beside the weights ------------------------------------------------------------------


def test_training_average(tmp_path: Path):
    """It is not used, nor even looked at, and one is told."""
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
    """What names and shapes cannot tell."""
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


def record(shape: tuple[int, ...]) -> Tensor:
    """A file's tensor without the file."""
    return Tensor("F32", shape, contiguous(shape), 0)


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models are made once for each table, not 3,000 times."""

    def once(kind: type[torch.nn.Module]) -> Callable[..., torch.nn.Module]:
        @functools.cache
        def make(*args: Any, **kwargs: Any) -> torch.nn.Module:
            model = kind(*args, **kwargs)
            state = model.state_dict()
            model.state_dict = lambda: state
            return model

        return make

    for each in ("UNet", "VAE", "TextEncoder"):
        monkeypatch.setattr(checkpoint, each, once(getattr(checkpoint, each)))


def problem(tensors: dict[str, Tensor]) -> str:
    """The error, or nothing."""
    try:
        checkpoint.build(checkpoint.split(tensors), 8, 12)
    except minisd.CheckpointError as error:
        return str(error)
    return ""


def sd1() -> dict[str, Tensor]:
    return {key: record(shape) for key, shape in manifest().items()}


def wider(was: Tensor) -> Tensor:
    return record((*was.shape[:-1], was.shape[-1] + 1))


REST = sorted(SCHEDULE_BUFFERS | {POSITION_IDS})  # what a file may have, or not


def test_all_entries_are_known(remembered: None):
    tensors = sd1()
    assert len(tensors) == 1143 and set(REST) < tensors.keys() and problem(tensors) == ""


@pytest.mark.parametrize("part", PREFIXES)
def test_each_weight_counts(part: str, remembered: None):
    """Without any one, with one more, or one of another shape: an error that names it alone."""
    tensors, prefix = sd1(), PREFIXES[part]
    names = [key for key in tensors if key.startswith(prefix) and key not in REST]
    for key in names:
        was = tensors.pop(key)
        assert problem(tensors) == f"missing {key}"
        tensors[key] = was

    parts = checkpoint.split(tensors)
    weights = parts[part]
    for key in names:
        name = key.removeprefix(prefix)
        was, other = weights[name], wider(weights[name])
        for changed, says in [
            (other, f"wrong shape: {key} is {other.shape}, should be {was.shape}"),
            (was, f"unknown {key}_more"),
        ]:
            weights[name] = changed
            if changed is was:
                weights[f"{name}_more"] = was
            with pytest.raises(minisd.CheckpointError) as caught:
                checkpoint.build(parts, 8, 12)
            assert str(caught.value) == says
        del weights[f"{name}_more"]
    assert len(names) == {"unet": 686, "vae": 248, "text_encoder": 196}[part]


@pytest.mark.parametrize("key", REST)
def test_the_rest(key: str, remembered: None):
    """The training schedule and position ids may be missing, but not be something else."""
    tensors = sd1()
    was = tensors.pop(key)
    assert problem(tensors) == ""
    wrong = f"wrong shape: {key} is {wider(was).shape}, should be {was.shape}"
    assert problem({**tensors, key: wider(was)}) == wrong
    more = f"{key}_more"
    says = problem({**tensors, more: was})
    assert says in (f"unknown {more}", f"tensors that SD 1.x does not have: {more}")
