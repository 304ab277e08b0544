"""Files of SD 1.x's own 1,143 names and shapes, at full size, in the forms that people have."""

import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import minisd
from minisd.checkpoint import read_unet_table
from minisd.unet import SD1

from .conftest import manifest


def zeros(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Memory that is never written to costs none."""
    return {
        key: torch.zeros(shape, dtype=torch.int64 if "position_ids" in key else dtype)
        for key, shape in manifest().items()
    }


def write_lightning(path: Path, state: dict[str, torch.Tensor], monkeypatch) -> None:
    """As Lightning does: callbacks are keyed by a class, of a module that will not be there."""
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


@pytest.mark.filterwarnings("ignore:the file's noise schedule")  # it is zeros here
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
        counts = [sum(p.numel() for p in model.parameters()) for model in models]
        assert counts == [859_520_964, 83_653_863, 123_060_480]  # published, and built by CompVis
        assert (sd.multiple, sd.native_size) == (64, 512)
        assert all(p.dtype == dtype for model in models[:2] for p in model.parameters())
    finally:
        path.unlink()


def test_table_read_off_equals_the_literal():
    prefix = "model.diffusion_model."
    shapes = {k.removeprefix(prefix): s for k, s in manifest().items() if k.startswith(prefix)}
    assert read_unet_table(shapes) == SD1
