"""SD 1.x's own 1,143 names and shapes, at full size, in files as people have them."""

import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import minisd
from minisd.checkpoint import PREFIXES
from minisd.checkpoint.architecture import build, unet_table
from minisd.checkpoint.names import Shapes
from minisd.unet import SD1

from .conftest import full_size, manifest

pytestmark = full_size

PARAMETERS = [859_520_964, 83_653_863, 123_060_480]  # as published, and as CompVis's code has them


def shapes_of(part: str) -> Shapes:
    """A model's names without their prefix, and shapes; no position ids."""
    return {
        name.removeprefix(PREFIXES[part]): shape
        for name, shape in manifest().items()
        if name.startswith(PREFIXES[part]) and "position_ids" not in name
    }


def test_the_inferred_table_equals_the_literal():
    assert unet_table(shapes_of("unet")) == SD1


def test_parameters():
    models = build({part: shapes_of(part) for part in PREFIXES})
    assert [sum(p.numel() for p in model.parameters()) for model in models] == PARAMETERS


def zeros(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Pages that are never written to take no memory."""
    return {
        key: torch.zeros(shape, dtype=torch.int64 if "position_ids" in key else dtype)
        for key, shape in manifest().items()
    }


def write_lightning(path: Path, state: dict[str, torch.Tensor], monkeypatch) -> None:
    """As Lightning does: a key of the callbacks is a class that is missing where it is read."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    parts = name.split(".")
    for n in range(1, 4):
        module = types.ModuleType(".".join(parts[:n]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    torch.save(
        {
            "epoch": 6,
            "global_step": 470000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": state,
            "callbacks": {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.1)}},
            "optimizer_states": [],
            "lr_schedulers": [],
        },
        path,
    )
    monkeypatch.undo()
    assert name not in sys.modules


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the file's noise schedule")  # here it is zeros
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_loads_strictly(form, dtype, tmp_path, monkeypatch):
    path = tmp_path / f"model.{form}"
    if form == "ckpt":
        write_lightning(path, zeros(dtype), monkeypatch)
    else:
        save_file(zeros(dtype), path)
    try:
        sd = minisd.load(path, dtype=dtype)
        models = (sd.unet, sd.vae, sd.text_encoder)
        assert [sum(p.numel() for p in model.parameters()) for model in models] == PARAMETERS
        assert (sd.multiple, sd.native_size) == (64, 512)
        assert all(p.dtype == dtype for model in models[:2] for p in model.parameters())
    finally:
        path.unlink()
