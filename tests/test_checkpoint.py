"""Checkpoints that people have: each form of file that holds the same weights gives the same model, to the bit."""

import functools
import io
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
from minisd.tensor_file import Tensor, contiguous, read_tensors

from .conftest import manifest, seeded, tiny_manifest
from .hostile_files import micro, micro_safetensors, safetensors_bytes, saved, write

Weights = dict[str, torch.Tensor]
TEXT = PREFIXES["text_encoder"]


def assert_holds(sd: minisd.StableDiffusion, weights: Weights, dtype: torch.dtype = torch.float32) -> None:
    """The model has exactly these, in `dtype`, and the text encoder in float32."""
    for part, prefix in PREFIXES.items():
        wanted = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        found = getattr(sd, part).state_dict()
        assert found.keys() == wanted.keys()
        kind = torch.float32 if part == "text_encoder" else dtype
        for key, value in found.items():
            assert value.dtype == kind and torch.equal(value, wanted[key].to(kind)), prefix + key
            assert value.device.type == "cpu" and not value.requires_grad


# ---- forms of file ---------------------------------------------------------------------------------------------------


def lightning(weights: Weights) -> dict[str, Any]:
    """What the originals' trainer wrote. The class it names isn't installed where the file is read."""
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
        "optimizer_states": [{"state": {0: {"step": 9, "exp_avg": torch.ones(7)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"last_epoch": 470000, "_last_lr": [1e-4], "lr_lambdas": [None]}],
        "hparams": set("abc"),
    }


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lightning is installed until the returned function is called."""
    found = [types.ModuleType(each) for each in ("pytorch_lightning", "pytorch_lightning.callbacks")]
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for each in (*found, module):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    return lambda: [monkeypatch.delitem(sys.modules, each.__name__) for each in (*found, module)]


def ordered(weights: Weights) -> OrderedDict:
    """As nn.Module.state_dict() gives it, with an attribute that says which version each module has."""
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
    return {**{key: seeded(key, (1000,)) for key in SCHEDULE_BUFFERS & {"betas", "alphas_cumprod"}}, **weights}


def without_text_model(weights: Weights) -> Weights:
    return {key.replace("transformer.text_model.", "transformer."): value for key, value in weights.items()}


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
        f"pickle protocol {n}": lambda weights, n=n: saved({"state_dict": weights}, protocol=n) for n in (2, 3, 4, 5)
    },
    "OrderedDict": lambda weights: saved(ordered(weights)),
    "OrderedDict, before torch 1.6": lambda weights: saved({"state_dict": ordered(weights)}, legacy=True),
    "parameters": lambda weights: saved({"state_dict": parameters(weights)}),
    "parameters, before torch 1.6": lambda weights: saved({"state_dict": parameters(weights)}, legacy=True),
    "one storage": lambda weights: saved(sliced(weights)),
    "one storage, before torch 1.6": lambda weights: saved(sliced(weights), legacy=True),
    "transposed": lambda weights: saved(transposed(weights)),
    "transposed, before torch 1.6": lambda weights: saved(transposed(weights), legacy=True),
    "schedule": lambda weights: saved(with_buffers(weights)),
    "schedule, safetensors": lambda weights: safetensors_bytes(with_buffers(weights)),
    "position ids": lambda weights: saved({**weights, POSITION_IDS: torch.arange(77)[None]}),
    "position ids as floats": lambda weights: safetensors_bytes({**weights, POSITION_IDS: torch.arange(77.0)[None]}),
    "position ids as halves": lambda weights: saved({**weights, POSITION_IDS: torch.arange(77)[None].half()}),
    "text encoder of newer transformers": lambda weights: saved(without_text_model(weights)),
    "text encoder of newer transformers, position ids": lambda weights: safetensors_bytes(
        without_text_model({**weights, POSITION_IDS: torch.arange(77)[None]})
    ),
    "metadata of others": lambda weights: hostile_metadata(weights),
}


def hostile_metadata(weights: Weights) -> bytes:
    from .hostile_files import safetensors_bytes as to_bytes

    return to_bytes(weights)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms(form: Callable[[Weights], bytes], trainer: Callable[[], None], tmp_path: Path):
    path = write(tmp_path / "model.ckpt", form(micro()))
    trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_holds(minisd.load(path), micro())
